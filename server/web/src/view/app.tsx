import { useSignal } from '@preact/signals';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import { connection, modelFor, models, needsKey, serverInfo } from '../api/server.js';
import { announced, ask, runs, stop } from '../state/answers.js';
import { alter, current, isLasting, isReady, isUnsaved } from '../state/chats.js';
import { change, settings } from '../state/settings.js';
import { t, texts } from '../text/index.js';
import { Composer } from './composer.js';
import { beginNew, exportOne, removeWithUndo } from './conversations.js';
import { KeyDialog, Palette } from './dialogs.js';
import { Icon, type IconName, Mark } from './icons.js';
import { IconButton, Menu } from './parts.js';
import { SettingsDialog } from './settings.js';
import { Sidebar } from './sidebar.js';
import { Turns } from './turns.js';
import { dialog, focusComposer, holdNotice, isDrawerOpen, notice } from './ui.js';

export function App() {
  useEffect(() => {
    addEventListener('keydown', onKey);
    focusComposer();
    return () => removeEventListener('keydown', onKey);
  }, []);
  const chat = current.value;
  useEffect(() => {
    document.title = chat ? `${chat.title} · ChatGLM` : 'ChatGLM';
  }, [chat?.title]);
  const isOpen = settings.value.isSidebarOpen;
  return (
    <div class={`app ${isOpen ? 'has-sidebar' : ''} ${isDrawerOpen.value ? 'has-drawer' : ''}`}>
      {/* biome-ignore lint/a11y/useValidAnchor: where it leads is a field, which is focused. */}
      <a
        class="skip"
        href="#question"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById('question')?.focus();
        }}
      >
        {t('skip')}
      </a>
      <Sidebar />
      {isDrawerOpen.value && (
        // biome-ignore lint/a11y/useKeyWithClickEvents lint/a11y/noStaticElementInteractions: Escape and a button close the drawer, too.
        <div
          class="veil"
          onClick={() => {
            isDrawerOpen.value = false;
          }}
        />
      )}
      <main class="main">
        <Header />
        {connection.value === 'offline' && (
          <p class="banner" role="status">
            {t('offline')}
          </p>
        )}
        {isUnsaved.value && (
          <p class="banner" role="alert">
            {t('notSaved')}
          </p>
        )}
        {isReady.value && !isLasting.value && <p class="banner">{t('notLasting')}</p>}
        {isReady.value && (chat ? <Conversation key={chat.id} /> : <Empty />)}
        <div class="foot">
          <Composer />
        </div>
      </main>
      <div class="unseen" role="status">
        {announced.value}
      </div>
      <Notice />
      {dialog.value === 'settings' && <SettingsDialog />}
      {dialog.value === 'palette' && <Palette />}
      {needsKey.value && <KeyDialog />}
    </div>
  );
}

function onKey(event: KeyboardEvent): void {
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key.toLowerCase() === 'k' && (event.ctrlKey || event.metaKey) && !event.altKey) {
    event.preventDefault();
    if (!needsKey.value) dialog.value = dialog.value === 'palette' ? undefined : 'palette';
  } else if (event.key === 'Escape' && dialog.value === undefined && !needsKey.value) {
    if (isDrawerOpen.value) isDrawerOpen.value = false;
    else if (current.value && runs.value.has(current.value.id)) stop(current.value.id);
  }
}

function Header() {
  const chat = current.value;
  const isShown = settings.value.isSidebarOpen;
  return (
    <header class="header">
      <IconButton
        icon="sidebar"
        class={isShown ? 'only-narrow' : ''}
        label={t('openSidebar')}
        aria-controls="sidebar"
        aria-expanded={isDrawerOpen.value}
        onClick={() => {
          if (matchMedia('(max-width: 760px)').matches) {
            isDrawerOpen.value = true;
            requestAnimationFrame(() => document.querySelector<HTMLElement>('#sidebar button')?.focus());
          } else change({ isSidebarOpen: true });
        }}
      />
      <IconButton icon="plus" class={isShown ? 'only-narrow' : ''} label={t('newChat')} onClick={beginNew} />
      <h1>{chat?.title ?? t('newChat')}</h1>
      <ModelChoice />
      {chat && (
        <Menu
          label={t('more', chat.title)}
          items={[
            { label: t('exportMarkdown'), icon: 'download', act: () => void exportOne(chat.id, 'md') },
            { label: t('exportJson'), icon: 'download', act: () => void exportOne(chat.id, 'json') },
            { label: t('remove'), icon: 'trash', isDangerous: true, act: () => void removeWithUndo(chat) },
          ]}
        />
      )}
    </header>
  );
}

function ModelChoice() {
  const chat = current.value;
  const chosen = modelFor(chat?.model);
  if (!chosen) return null;
  if (models.value.length === 1) return <span class="model-name">{chosen.id}</span>;
  return (
    <select
      class="model-choice"
      aria-label={t('model')}
      value={chosen.id}
      onChange={({ currentTarget: { value } }) => {
        change({ model: value });
        if (chat) alter(chat.id, (each) => ({ ...each, model: value }), { isTouched: false });
      }}
    >
      {models.value.map(({ id }) => (
        <option key={id} value={id}>
          {id}
        </option>
      ))}
    </select>
  );
}

/** The turns of a conversation. Who is at its end stays there while an answer grows; who has scrolled up is left alone. */
function Conversation() {
  const chat = current.value;
  const scroller = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  const isAway = useSignal(false);
  const toEnd = () => {
    const element = scroller.current;
    if (element) element.scrollTop = element.scrollHeight;
  };
  useLayoutEffect(() => {
    toEnd();
    const content = scroller.current?.firstElementChild;
    if (!content) return;
    const observer = new ResizeObserver(() => {
      if (isAtEnd.current) toEnd();
    });
    observer.observe(content);
    return () => observer.disconnect();
  }, []);
  // A new question brings its asker to the end.
  const isRunning = chat !== undefined && runs.value.has(chat.id);
  useLayoutEffect(() => {
    if (!isRunning) return;
    isAtEnd.current = true;
    toEnd();
  }, [isRunning]);
  if (!chat) return null;
  return (
    <div class="conversation">
      <section
        class="scroller"
        ref={scroller}
        aria-label={chat.title}
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what can be scrolled can be reached with the keyboard.
        tabIndex={0}
        onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
          isAtEnd.current = scrollHeight - scrollTop - clientHeight < 60;
          isAway.value = !isAtEnd.current;
        }}
      >
        <Turns chat={chat} />
      </section>
      {isAway.value && (
        <IconButton
          icon="down"
          class="to-end"
          label={t('toLatest')}
          onClick={() => {
            isAtEnd.current = true;
            toEnd();
          }}
        />
      )}
    </div>
  );
}

type Example = keyof ReturnType<typeof texts>['examples'];

const EXAMPLE_ICONS: Record<Example, IconName> = {
  weather: 'sun',
  sum: 'sum',
  capital: 'book',
  sleep: 'moon',
  story: 'pencil',
};

function Empty() {
  const hasWeather = serverInfo.value.tools.some(({ name }) => /weather/i.test(name));
  const names: Example[] = [hasWeather ? 'weather' : 'story', 'sum', 'capital', 'sleep'];
  return (
    <div class="empty">
      <Mark />
      <h2>{t('greeting')}</h2>
      <p class="hint">{t('greetingHint')}</p>
      <ul class="examples">
        {names.map((name) => {
          const [title, question] = texts().examples[name];
          return (
            <li key={name}>
              <button
                type="button"
                onClick={() => {
                  ask(question, []);
                  focusComposer();
                }}
              >
                <Icon name={EXAMPLE_ICONS[name]} />
                <span class="example-title">{title}</span>
                <span class="example-question">{question}</span>
              </button>
            </li>
          );
        })}
      </ul>
    </div>
  );
}

function Notice() {
  const shown = notice.value;
  return (
    <div class="notices" role="status">
      {shown && (
        <div
          class="notice"
          onPointerEnter={() => holdNotice(true)}
          onPointerLeave={() => holdNotice(false)}
          onFocusIn={() => holdNotice(true)}
          onFocusOut={() => holdNotice(false)}
        >
          <span>{shown.text}</span>
          {shown.undo && (
            <button
              type="button"
              onClick={() => {
                shown.undo?.();
                notice.value = undefined;
                focusComposer();
              }}
            >
              {t('undo')}
            </button>
          )}
        </div>
      )}
    </div>
  );
}
