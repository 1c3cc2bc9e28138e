import { useSignal, useSignalEffect } from '@preact/signals';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import { hasTools, modelFor, serverInfo } from '../api/server.js';
import { ask, runs, stop } from '../state/answers.js';
import { current, currentId, currentPath } from '../state/chats.js';
import { change, settings } from '../state/settings.js';
import type { TextFile } from '../state/types.js';
import { formatNumber, t } from '../text/index.js';
import { FileChips } from './chips.js';
import { Icon } from './icons.js';
import { IconButton } from './parts.js';
import { editing, focusComposer, hasScreenKeyboard, tell } from './ui.js';

const MOST_FILES = 10;
const MOST_BYTES = 256 * 1024;
/** Longer texts that are pasted become files, so that the question stays readable. */
const PASTED_AS_FILE = 4000;

/** What was written and not sent, by conversation: it outlasts a reload. */
function draftName(): string {
  return `chatglm.draft.${currentId.value}`;
}

export function Composer() {
  const text = useSignal('');
  const files = useSignal<readonly TextFile[]>([]);
  const isDragged = useSignal(false);
  const field = useRef<HTMLTextAreaElement>(null);
  const chooser = useRef<HTMLInputElement>(null);
  const chat = current.value;
  const isRunning = chat !== undefined && runs.value.has(chat.id);
  const canSend = !isRunning && (text.value.trim() !== '' || files.value.length > 0);

  useSignalEffect(() => {
    text.value = sessionStorage.getItem(draftName()) ?? '';
    files.value = [];
  });
  const write = (value: string) => {
    text.value = value;
    if (value === '') sessionStorage.removeItem(draftName());
    else sessionStorage.setItem(draftName(), value);
  };
  useLayoutEffect(() => {
    // Where the browser cannot size a field by what is in it.
    const element = field.current;
    if (!element || CSS.supports('field-sizing', 'content')) return;
    element.style.height = 'auto';
    element.style.height = `${element.scrollHeight}px`;
  }, [text.value]);

  const send = () => {
    if (!canSend) return;
    const [question, attached] = [text.value.trim(), [...files.value]];
    write('');
    files.value = [];
    ask(question, attached);
    focusComposer();
  };

  const take = async (list: readonly File[]) => {
    for (const file of list) {
      if (files.value.length >= MOST_FILES) {
        tell(t('tooManyFiles', MOST_FILES));
        return;
      }
      if (file.size > MOST_BYTES) {
        tell(t('fileTooLarge', file.name, `${MOST_BYTES / 1024} KB`));
        continue;
      }
      const content = await file.text();
      // U+FFFD stands for bytes that are no UTF-8.
      if (/[\0\uFFFD]/.test(content)) {
        tell(t('fileNoText', file.name));
        continue;
      }
      files.value = [...files.value, { name: file.name, text: content.replace(/\r\n?/g, '\n') }];
    }
  };

  useEffect(() => {
    const isFile = (event: DragEvent) => event.dataTransfer?.types.includes('Files') ?? false;
    const over = (event: DragEvent) => {
      if (!isFile(event)) return;
      event.preventDefault();
      isDragged.value = true;
    };
    const leave = (event: DragEvent) => {
      if (event.relatedTarget === null) isDragged.value = false;
    };
    const drop = (event: DragEvent) => {
      if (!isFile(event)) return;
      event.preventDefault();
      isDragged.value = false;
      void take([...(event.dataTransfer?.files ?? [])]);
      field.current?.focus();
    };
    addEventListener('dragover', over);
    addEventListener('dragleave', leave);
    addEventListener('drop', drop);
    return () => {
      removeEventListener('dragover', over);
      removeEventListener('dragleave', leave);
      removeEventListener('drop', drop);
    };
  }, []);

  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      {isDragged.value && <div class="drop">{t('dropHere')}</div>}
      {files.value.length > 0 && (
        <FileChips
          files={files.value}
          onRemove={(index) => {
            files.value = files.value.filter((_, at) => at !== index);
            field.current?.focus();
          }}
        />
      )}
      <textarea
        id="question"
        ref={field}
        rows={1}
        value={text.value}
        aria-label={t('ask')}
        placeholder={t('ask')}
        onInput={({ currentTarget }) => write(currentTarget.value)}
        onPaste={(event) => {
          const pasted = [...(event.clipboardData?.files ?? [])];
          const plain = event.clipboardData?.getData('text/plain') ?? '';
          if (pasted.length > 0 && plain === '') {
            event.preventDefault();
            void take(pasted);
          } else if (plain.length > PASTED_AS_FILE) {
            event.preventDefault();
            void take([new File([plain], `${t('pasted')}.txt`)]);
          }
        }}
        onKeyDown={(event) => {
          // While an input method composes, Enter is its key; Safari tells of that by the code only.
          if (event.isComposing || event.keyCode === 229) return;
          // A keyboard on a screen has no Shift+Enter: there the button sends.
          if (event.key === 'Enter' && !event.shiftKey && !hasScreenKeyboard()) {
            event.preventDefault();
            send();
          }
          const last = currentPath().findLast(({ role }) => role === 'user');
          if (event.key === 'ArrowUp' && text.value === '' && last && !isRunning) {
            event.preventDefault();
            editing.value = last.id;
          }
        }}
      />
      <div class="composer-bar">
        <IconButton icon="clip" label={t('attach')} onClick={() => chooser.current?.click()} />
        <input
          ref={chooser}
          type="file"
          multiple
          hidden
          aria-label={t('attach')}
          onChange={({ currentTarget }) => {
            void take([...(currentTarget.files ?? [])]);
            currentTarget.value = '';
            field.current?.focus();
          }}
        />
        {hasTools.value && (
          <button
            type="button"
            class="toggle"
            aria-pressed={settings.value.useTools}
            title={[...serverInfo.value.tools.map(({ name }) => name), serverInfo.value.interpreter]
              .filter(Boolean)
              .join(', ')}
            onClick={() => change({ useTools: !settings.value.useTools })}
          >
            <Icon name="tool" />
            {t('useTools')}
          </button>
        )}
        <span class="grow" />
        <ContextGauge />
        {isRunning && chat ? (
          <button type="button" class="send" aria-label={t('stop')} title={t('stop')} onClick={() => stop(chat.id)}>
            <Icon name="square" />
          </button>
        ) : (
          <button type="submit" class="send" aria-label={t('send')} title={t('send')} disabled={!canSend}>
            <Icon name="up" />
          </button>
        )}
      </div>
    </form>
  );
}

/** How much of the model's context the conversation takes. */
function ContextGauge() {
  const chat = current.value;
  const length = modelFor(chat?.model)?.contextLength;
  const last = currentPath().findLast(({ usage }) => usage !== undefined);
  if (!last?.usage || length === undefined) return null;
  const { prompt, generated } = last.usage;
  // Each step has a prompt of its own, and usage adds them up: about the last one is what the context holds.
  const rounds = 1 + last.parts.filter(({ type }) => type !== 'text').length;
  const used = Math.min(length, Math.round(prompt / rounds) + generated);
  const share = used / length;
  const label = t('context', formatNumber(used), formatNumber(length), Math.round(share * 100));
  const around = 2 * Math.PI * 8;
  return (
    <span class={`gauge ${share > 0.9 ? 'is-full' : ''}`} role="img" aria-label={label} title={label}>
      <svg viewBox="0 0 20 20" aria-hidden="true">
        <circle cx="10" cy="10" r="8" />
        <circle cx="10" cy="10" r="8" class="gauge-used" stroke-dasharray={`${share * around} ${around}`} />
      </svg>
      {Math.round(share * 100)}%
    </span>
  );
}
