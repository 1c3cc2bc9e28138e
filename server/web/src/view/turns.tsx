import { useComputed, useSignal } from '@preact/signals';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import { connection, modelFor, needsKey } from '../api/server.js';
import { askAgain, regenerate, retry, runs } from '../state/answers.js';
import { alter } from '../state/chats.js';
import { childrenOf, pathOf, textOf } from '../state/tree.js';
import type { Chat, Problem, Turn } from '../state/types.js';
import { formatNumber, t, texts } from '../text/index.js';
import { FileChips } from './chips.js';
import { Markdown } from './markdown.js';
import { CopyButton, IconButton } from './parts.js';
import { CodeStep, ToolStep } from './steps.js';
import { editing, focusComposer } from './ui.js';

export function Turns({ chat }: { chat: Chat }) {
  const path = pathOf(chat);
  return (
    <div class="turns">
      {path.map((turn, index) => {
        const begins = chat.from === turn.id && index > 0;
        return (
          <div key={turn.id} class={`turn is-${turn.role}`}>
            {begins && <p class="left-out">{t('leftOut')}</p>}
            {turn.role === 'user' ? (
              <Question chat={chat} turn={turn} />
            ) : (
              <Answer chat={chat} turn={turn} isLast={index === path.length - 1} />
            )}
          </div>
        );
      })}
    </div>
  );
}

function Question({ chat, turn }: { chat: Chat; turn: Turn }) {
  const text = textOf(turn);
  if (editing.value === turn.id) return <EditQuestion chat={chat} turn={turn} />;
  return (
    <article aria-label={t('you')} class="question">
      <h2 class="unseen">{t('you')}</h2>
      {turn.files && <FileChips files={turn.files} />}
      {text !== '' && <div class="bubble">{text}</div>}
      <div class="actions">
        <CopyButton text={() => text} />
        {!runs.value.has(chat.id) && (
          <IconButton
            icon="pencil"
            label={t('edit')}
            onClick={() => {
              editing.value = turn.id;
            }}
          />
        )}
        <Branches chat={chat} turn={turn} />
      </div>
    </article>
  );
}

function EditQuestion({ chat, turn }: { chat: Chat; turn: Turn }) {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(-1, -1);
  }, []);
  const leave = () => {
    editing.value = '';
    focusComposer();
  };
  const send = () => {
    const text = field.current?.value.trim() ?? '';
    if (text === '' && !turn.files) return;
    leave();
    askAgain(chat, turn, text, turn.files);
  };
  return (
    <form
      class="edit"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      {turn.files && <FileChips files={turn.files} />}
      <textarea
        ref={field}
        aria-label={t('editQuestion')}
        defaultValue={textOf(turn)}
        onKeyDown={(event) => {
          if (event.isComposing || event.keyCode === 229) return;
          if (event.key === 'Enter' && !event.shiftKey) {
            event.preventDefault();
            send();
          }
          if (event.key === 'Escape') {
            event.stopPropagation();
            leave();
          }
        }}
      />
      <div class="edit-actions">
        <button type="button" class="quiet" onClick={leave}>
          {t('cancel')}
        </button>
        <button type="submit" class="primary">
          {t('sendAgain')}
        </button>
      </div>
    </form>
  );
}

function Answer({ chat, turn: stored, isLast }: { chat: Chat; turn: Turn; isLast: boolean }) {
  // Only what is written is looked at once a frame.
  const live = useComputed(() => {
    const run = runs.value.get(chat.id);
    return run && run.turn.peek().id === stored.id ? run.turn.value : undefined;
  });
  const isLive = live.value !== undefined;
  const turn = live.value ?? stored;
  const { parts, finish, problem } = turn;
  const isEmpty = parts.length === 0;
  return (
    <article aria-label={t('assistant')} class="answer" aria-busy={isLive}>
      <h2 class="unseen">{t('assistant')}</h2>
      {parts.map((part, index) => {
        const isRunning = isLive && index === parts.length - 1;
        // Parts only ever come behind one another.
        if (part.type === 'text') {
          return part.text.trim() === '' ? null : <Markdown key={index} text={part.text} isComplete={!isRunning} />;
        }
        if (part.type === 'tool') return <ToolStep key={index} part={part} isLive={isRunning} />;
        return <CodeStep key={index} part={part} isLive={isRunning} />;
      })}
      {isLive && (isEmpty || parts.at(-1)?.type !== 'text') && (
        <p class="waiting">
          <span class="unseen">{t('writing')}</span>
        </p>
      )}
      {finish === 'stopped' && !isLive && <p class="note">{t('stopped')}</p>}
      {finish === 'cut' && !isLive && <p class="note">{t('cutOff')}</p>}
      {finish === 'length' && !isLive && <LengthNote chat={chat} turn={turn} isLast={isLast} />}
      {problem && !isLive && <ProblemNote chat={chat} turn={turn} problem={problem} />}
      {!isLive && (
        <div class={`actions ${isLast ? 'is-last' : ''}`}>
          {textOf(turn).trim() !== '' && <CopyButton text={() => textOf(turn).trim()} />}
          {!runs.value.has(chat.id) && !(problem && isEmpty) && (
            <IconButton icon="again" label={t('regenerate')} onClick={() => regenerate(chat, turn)} />
          )}
          <Branches chat={chat} turn={turn} />
          <Statistics turn={turn} />
        </div>
      )}
    </article>
  );
}

function Statistics({ turn: { usage, timings, model } }: { turn: Turn }) {
  if (!usage) return null;
  const speed = timings?.tokensPerSecond;
  const first = timings?.firstTokenMs;
  const about = [model, first === undefined ? undefined : t('firstToken', formatNumber(first / 1000, 2))];
  return (
    <span class="statistics" title={about.filter((text) => text !== undefined).join(' · ')}>
      {speed
        ? t('statistics', usage.generated, formatNumber(speed, speed < 10 ? 1 : 0))
        : t('tokensOnly', usage.generated)}
    </span>
  );
}

function Branches({ chat, turn }: { chat: Chat; turn: Turn }) {
  const siblings = childrenOf(chat, turn.parent);
  if (siblings.length < 2) return null;
  const at = siblings.findIndex(({ id }) => id === turn.id);
  const choose = (index: number) => {
    const sibling = siblings[index];
    if (!sibling) return;
    alter(chat.id, (each) => ({ ...each, chosen: { ...each.chosen, [turn.parent]: sibling.id } }), {
      isTouched: false,
    });
    // The button that was pressed is gone with its turn.
    requestAnimationFrame(() => {
      const group = document.querySelector(`[data-branches="${CSS.escape(sibling.id)}"]`);
      group?.querySelectorAll<HTMLElement>('button:enabled')[index > at ? 1 : 0]?.focus();
      if (!group?.contains(document.activeElement)) group?.querySelector<HTMLElement>('button:enabled')?.focus();
    });
  };
  return (
    // biome-ignore lint/a11y/useSemanticElements: a fieldset is for forms.
    <span class="branches" role="group" aria-label={t('branch', at + 1, siblings.length)} data-branches={turn.id}>
      <IconButton icon="left" label={t('previous')} disabled={at === 0} onClick={() => choose(at - 1)} />
      <span aria-hidden="true">
        {at + 1}/{siblings.length}
      </span>
      <IconButton icon="right" label={t('next')} disabled={at === siblings.length - 1} onClick={() => choose(at + 1)} />
    </span>
  );
}

/** Whether the model is told of questions before the one that this answers. */
function canDrop(chat: Chat, turn: Turn): boolean {
  const path = pathOf(chat);
  const end = path.findIndex(({ id }) => id === turn.id);
  const begins = Math.max(
    0,
    path.findIndex(({ id }) => id === chat.from),
  );
  return path.slice(begins, end).filter(({ role }) => role === 'user').length > 1;
}

/** An answer that ended before it was complete: at the limit that was set, or at the end of the context. */
function LengthNote({ chat, turn, isLast }: { chat: Chat; turn: Turn; isLast: boolean }) {
  const { contextLength } = modelFor(turn.model) ?? {};
  const hasSteps = turn.parts.some(({ type }) => type !== 'text');
  const used = turn.usage && !hasSteps ? turn.usage.prompt + turn.usage.generated : 0;
  const isFull = contextLength !== undefined && used >= contextLength - 1;
  return (
    <>
      <p class="note">{isFull ? t('contextReached') : t('lengthReached')}</p>
      {isFull && isLast && canDrop(chat, turn) && (
        <p class="note">
          <button type="button" class="secondary" onClick={() => retry(chat, turn, { dropOldest: true, isFull: true })}>
            {t('dropOldest')}
          </button>
        </p>
      )}
    </>
  );
}

/** What went wrong, and what can be done about it. */
function ProblemNote({ chat, turn, problem }: { chat: Chat; turn: Turn; problem: Problem }) {
  const { kind, message } = problem;
  const isAlone = kind === 'context' && !canDrop(chat, turn);
  const { problems } = texts();
  const showsMessage = message !== undefined && ['request', 'server', 'model', 'limit'].includes(kind);
  return (
    <div class="problem" role="alert">
      <p>{isAlone ? problems.contextAlone : problems[kind]}</p>
      {showsMessage && <p class="problem-message">{message}</p>}
      <div class="problem-actions">
        {kind === 'context' && !isAlone && (
          <button type="button" class="primary" onClick={() => retry(chat, turn, { dropOldest: true })}>
            {t('dropOldest')}
          </button>
        )}
        {kind === 'key' && (
          <button
            type="button"
            class="primary"
            onClick={() => {
              needsKey.value = true;
            }}
          >
            {t('enterKey')}
          </button>
        )}
        {kind !== 'context' && <TryAgain chat={chat} turn={turn} problem={problem} />}
      </div>
    </div>
  );
}

/** Tries again by itself where the server is only busy, and when it is there again. */
function TryAgain({ chat, turn, problem }: { chat: Chat; turn: Turn; problem: Problem }) {
  const isFresh = Date.now() - turn.created < 120_000;
  const isBusy = problem.kind === 'busy' && isFresh;
  const left = useSignal(isBusy ? Math.max(2, problem.retryAfter ?? 3) : 0);
  const again = () => retry(chat, turn);
  useLayoutEffect(() => {
    if (!isBusy) return;
    const timer = setInterval(() => {
      left.value--;
      if (left.value > 0) return;
      clearInterval(timer);
      again();
    }, 1000);
    return () => clearInterval(timer);
  }, []);
  return (
    <>
      <button
        type="button"
        class={problem.kind === 'key' ? 'quiet' : 'primary'}
        onClick={again}
        disabled={connection.value === 'offline'}
      >
        {t('tryAgain')}
      </button>
      {isBusy && left.value > 0 && <span class="hint">{t('retryIn', left.value)}</span>}
    </>
  );
}
