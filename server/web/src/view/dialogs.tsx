import { useSignal } from '@preact/signals';
import { connect, needsKey } from '../api/server.js';
import { retry } from '../state/answers.js';
import { current, currentPath, summaries } from '../state/chats.js';
import { settings } from '../state/settings.js';
import { t } from '../text/index.js';
import { beginNew, open } from './conversations.js';
import { Icon } from './icons.js';
import { Dialog } from './parts.js';
import { KeyField } from './settings.js';
import { useFound } from './sidebar.js';
import { dialog, focusComposer } from './ui.js';

/** Asks for the key of the server. */
export function KeyDialog() {
  const isWrong = useSignal(false);
  const isTrying = useSignal(false);
  return (
    <Dialog
      label={t('keyTitle')}
      class="ask-key"
      onClose={() => {
        needsKey.value = false;
      }}
    >
      <form
        onSubmit={async (event) => {
          event.preventDefault();
          isTrying.value = true;
          const isAccepted = await connect();
          isTrying.value = false;
          isWrong.value = !isAccepted;
          if (!isAccepted) return;
          focusComposer();
          // The question that was refused is answered now.
          const [chat, last] = [current.value, currentPath().at(-1)];
          if (chat && last?.problem?.kind === 'key') retry(chat, last);
        }}
      >
        <h2>{t('keyTitle')}</h2>
        <p class="hint">{t('keyText')}</p>
        <KeyField id="asked-key" />
        {isWrong.value && (
          <p class="wrong" role="alert">
            {t('keyWrong')}
          </p>
        )}
        <div class="row is-end">
          <button
            type="button"
            class="quiet"
            onClick={() => {
              needsKey.value = false;
            }}
          >
            {t('cancel')}
          </button>
          <button type="submit" class="primary" disabled={settings.value.key === '' || isTrying.value}>
            {t('proceed')}
          </button>
        </div>
      </form>
    </Dialog>
  );
}

/** Conversations by words, or a new one. */
export function Palette() {
  const words = useSignal('');
  const at = useSignal(0);
  const found = useFound(words.value);
  const entries =
    words.value.trim() === ''
      ? summaries.value.slice(0, 8).map((summary) => ({ summary, excerpt: '' }))
      : found.slice(0, 20);
  const count = entries.length + 1;
  const close = () => {
    dialog.value = undefined;
  };
  const choose = (index: number) => {
    const entry = entries[index - 1];
    close();
    if (entry) open(entry.summary.id);
    else beginNew();
  };
  // With words the first that was found is what is wanted.
  const selected = Math.min(at.value, count - 1);
  return (
    <Dialog label={t('searchOrNew')} class="palette" onClose={close}>
      <div class="search">
        <Icon name="search" />
        <input
          type="text"
          role="combobox"
          aria-expanded="true"
          aria-controls="palette-list"
          aria-activedescendant={`palette-${selected}`}
          aria-label={t('searchOrNew')}
          placeholder={t('searchOrNew')}
          value={words.value}
          onInput={({ currentTarget }) => {
            words.value = currentTarget.value;
            at.value = currentTarget.value.trim() === '' ? 0 : 1;
          }}
          onKeyDown={(event) => {
            if (event.isComposing) return;
            if (event.key === 'ArrowDown') at.value = (selected + 1) % count;
            else if (event.key === 'ArrowUp') at.value = (selected - 1 + count) % count;
            else if (event.key === 'Enter') choose(selected);
            else return;
            event.preventDefault();
          }}
        />
      </div>
      <div id="palette-list" role="listbox" aria-label={t('conversations')}>
        {[undefined, ...entries].map((entry, index) => (
          // biome-ignore lint/a11y/useKeyWithClickEvents lint/a11y/useFocusableInteractive: keys are those of the field above.
          <div
            key={entry?.summary.id ?? ''}
            id={`palette-${index}`}
            role="option"
            aria-selected={index === selected}
            onClick={() => choose(index)}
            onPointerMove={() => {
              at.value = index;
            }}
          >
            {entry ? (
              <>
                <span class="chat-title">{entry.summary.title}</span>
                {entry.excerpt !== '' && <span class="excerpt">{entry.excerpt}</span>}
              </>
            ) : (
              <span class="with-icon">
                <Icon name="plus" />
                {t('newChat')}
              </span>
            )}
          </div>
        ))}
      </div>
    </Dialog>
  );
}
