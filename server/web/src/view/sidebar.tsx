import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { runs } from '../state/answers.js';
import { currentId, isReady, rename, search, summaries } from '../state/chats.js';
import { change } from '../state/settings.js';
import type { Summary } from '../state/types.js';
import { t } from '../text/index.js';
import { beginNew, exportOne, open, removeWithUndo } from './conversations.js';
import { Icon, Mark } from './icons.js';
import { IconButton, Menu } from './parts.js';
import { dialog, isDrawerOpen } from './ui.js';

export function Sidebar() {
  const words = useSignal('');
  const found = useFound(words.value);
  const isSearching = words.value.trim() !== '';
  const shown = isSearching ? found : summaries.value.map((summary) => ({ summary, excerpt: '' }));
  const groups = isSearching ? [{ name: '', entries: shown }] : grouped(shown);
  return (
    <aside id="sidebar" class="sidebar" aria-label={t('conversations')}>
      <div class="sidebar-top">
        <span class="brand">
          <Mark />
          ChatGLM
        </span>
        <IconButton
          icon="sidebar"
          label={t('closeSidebar')}
          onClick={() => {
            if (isDrawerOpen.value) isDrawerOpen.value = false;
            else change({ isSidebarOpen: false });
          }}
        />
      </div>
      <button type="button" class="new-chat" onClick={beginNew}>
        <Icon name="plus" />
        {t('newChat')}
      </button>
      <div class="search">
        <Icon name="search" />
        <input
          type="search"
          value={words.value}
          aria-label={t('search')}
          placeholder={t('search')}
          onInput={({ currentTarget }) => {
            words.value = currentTarget.value;
          }}
        />
      </div>
      <nav class="chats" aria-label={t('conversations')}>
        {isReady.value && shown.length === 0 && <p class="hint">{isSearching ? t('noneFound') : t('nothingYet')}</p>}
        {groups.map(({ name, entries }) => (
          <section key={name}>
            {name !== '' && <h2>{name}</h2>}
            <ul>
              {entries.map(({ summary, excerpt }) => (
                <Entry key={summary.id} summary={summary} excerpt={excerpt} />
              ))}
            </ul>
          </section>
        ))}
      </nav>
      <div class="sidebar-bottom">
        <button
          type="button"
          class="quiet"
          onClick={() => {
            dialog.value = 'settings';
          }}
        >
          <Icon name="sliders" />
          {t('settings')}
        </button>
      </div>
    </aside>
  );
}

interface Found {
  summary: Summary;
  excerpt: string;
}

/** Conversations with the words, as they are found. */
export function useFound(words: string): Found[] {
  const found = useSignal<Found[]>([]);
  // What is renamed or removed meanwhile is to be found as it is.
  const known = summaries.value;
  useEffect(() => {
    if (words.trim() === '') {
      found.value = [];
      return;
    }
    let isCurrent = true;
    void search(words, () => isCurrent).then((list) => {
      if (isCurrent) found.value = list;
    });
    return () => {
      isCurrent = false;
    };
  }, [words, known]);
  return found.value;
}

function grouped(entries: readonly Found[]): { name: string; entries: Found[] }[] {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 86_400_000;
  const names = [t('today'), t('yesterday'), t('lastWeek'), t('older')];
  const groups = names.map((name) => ({ name, entries: [] as Found[] }));
  for (const entry of entries) {
    const { updated } = entry.summary;
    const at = [midnight, midnight - day, midnight - 7 * day].findIndex((from) => updated >= from);
    groups[at < 0 ? 3 : at]?.entries.push(entry);
  }
  return groups.filter((group) => group.entries.length > 0);
}

function Entry({ summary, excerpt }: { summary: Summary; excerpt: string }) {
  const { id, title } = summary;
  const isRenaming = useSignal(false);
  const item = useRef<HTMLLIElement>(null);
  const isCurrent = currentId.value === id;
  return (
    <li ref={item} class={isCurrent ? 'is-current' : ''}>
      {isRenaming.value ? (
        <Rename
          title={title}
          onDone={(name) => {
            isRenaming.value = false;
            if (name !== undefined) void rename(id, name);
            requestAnimationFrame(() => item.current?.querySelector('button')?.focus());
          }}
        />
      ) : (
        <>
          <button
            type="button"
            class="chat"
            aria-current={isCurrent ? 'page' : undefined}
            onClick={() => open(id)}
            onDblClick={() => {
              isRenaming.value = true;
            }}
          >
            <span class="chat-title">{title}</span>
            {excerpt !== '' && <span class="excerpt">{excerpt}</span>}
          </button>
          {runs.value.has(id) && <span class="running" aria-hidden="true" />}
          <Menu
            label={t('more', title)}
            items={[
              {
                label: t('rename'),
                icon: 'pencil',
                act: () => {
                  isRenaming.value = true;
                },
              },
              { label: t('exportMarkdown'), icon: 'download', act: () => void exportOne(id, 'md') },
              { label: t('exportJson'), icon: 'download', act: () => void exportOne(id, 'json') },
              { label: t('remove'), icon: 'trash', isDangerous: true, act: () => void removeWithUndo(summary) },
            ]}
          />
        </>
      )}
    </li>
  );
}

function Rename({ title, onDone }: { title: string; onDone: (name: string | undefined) => void }) {
  const field = useRef<HTMLInputElement>(null);
  const isOver = useRef(false);
  useEffect(() => field.current?.select(), []);
  const end = (name: string | undefined) => {
    if (isOver.current) return;
    isOver.current = true;
    onDone(name);
  };
  return (
    <input
      ref={field}
      class="rename"
      aria-label={t('title')}
      defaultValue={title}
      maxLength={200}
      onKeyDown={(event) => {
        if (event.isComposing) return;
        if (event.key === 'Enter') end(event.currentTarget.value);
        if (event.key === 'Escape') {
          event.stopPropagation();
          end(undefined);
        }
      }}
      onBlur={({ currentTarget }) => end(currentTarget.value)}
    />
  );
}
