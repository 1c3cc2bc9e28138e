import type { TextFile } from '../state/types.js';
import { t } from '../text/index.js';
import { Icon } from './icons.js';
import { IconButton } from './parts.js';

export function FileChips({ files, onRemove }: { files: readonly TextFile[]; onRemove?: (index: number) => void }) {
  return (
    <ul class="chips">
      {files.map(({ name, text }, index) => (
        <li key={`${index} ${name}`} class="chip">
          <Icon name="file" />
          <span class="chip-name">{name}</span>
          <span class="chip-size">{t('lines', text.replace(/\n$/, '').split('\n').length)}</span>
          {onRemove && <IconButton icon="close" label={t('removeFile', name)} onClick={() => onRemove(index)} />}
        </li>
      ))}
    </ul>
  );
}
