import { computed, effect, signal } from '@preact/signals';

export interface Parameters {
  temperature: number | undefined;
  topP: number | undefined;
  maxTokens: number | undefined;
  seed: number | undefined;
}

/** What the browser remembers beside conversations. */
export interface Settings extends Parameters {
  theme: 'auto' | 'light' | 'dark';
  language: 'auto' | 'zh' | 'en';
  model: string | undefined;
  /** The key of the server's API. */
  key: string;
  useTools: boolean;
  /** Whether the oldest questions are left out without asking, where the context is full. */
  dropOldest: boolean;
  isSidebarOpen: boolean;
}

export const PRESETS = {
  precise: { temperature: 0, topP: 1 },
  balanced: { temperature: 0.8, topP: 0.8 },
  creative: { temperature: 1, topP: 1 },
} as const;

const DEFAULTS: Settings = {
  theme: 'auto',
  language: 'auto',
  model: undefined,
  key: '',
  useTools: true,
  dropOldest: false,
  isSidebarOpen: true,
  ...PRESETS.balanced,
  maxTokens: undefined,
  seed: undefined,
};

const NAME = 'chatglm.settings';

function read(): Settings {
  const settings: Record<string, unknown> = { ...DEFAULTS };
  try {
    const saved = JSON.parse(localStorage.getItem(NAME) ?? '{}') as Record<string, unknown>;
    for (const [name, value] of Object.entries(saved)) {
      const standard = settings[name];
      const isNumber = ['maxTokens', 'seed', 'temperature', 'topP'].includes(name) && typeof value === 'number';
      if (isNumber || (name === 'model' && typeof value === 'string')) settings[name] = value;
      else if (name in DEFAULTS && typeof value === typeof standard) settings[name] = value;
    }
    for (const name of ['temperature', 'topP']) if (saved[name] === null) settings[name] = undefined;
  } catch {
    // A damaged store is as good as none.
  }
  return settings as unknown as Settings;
}

export const settings = signal(read());

export function change(some: Partial<Settings>): void {
  settings.value = { ...settings.value, ...some };
  try {
    // JSON has no undefined; null tells "the server's own default" from "never set".
    localStorage.setItem(
      NAME,
      JSON.stringify(settings.value, (_, value) => (value === undefined ? null : value)),
    );
  } catch {
    // Without a store the settings hold until the page is closed.
  }
}

// Another window of the page has changed something.
addEventListener('storage', ({ key }) => {
  if (key === NAME || key === null) settings.value = read();
});

export const language = computed<'zh' | 'en'>(() => {
  const { language: chosen } = settings.value;
  if (chosen !== 'auto') return chosen;
  return /^zh\b/i.test(navigator.language) ? 'zh' : 'en';
});

effect(() => {
  const { theme } = settings.value;
  const root = document.documentElement;
  if (theme === 'auto') delete root.dataset.theme;
  else root.dataset.theme = theme;
  root.lang = language.value === 'zh' ? 'zh-CN' : 'en';
});
