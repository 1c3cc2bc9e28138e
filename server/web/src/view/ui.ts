import { signal } from '@preact/signals';

/** What lies over the page. */
export const dialog = signal<'settings' | 'palette' | undefined>(undefined);
/** Whether the conversations are shown over the page, where it is narrow. */
export const isDrawerOpen = signal(false);
/** The question that is being edited. */
export const editing = signal('');

export interface Notice {
  text: string;
  undo?: (() => void) | undefined;
}

export const notice = signal<Notice | undefined>(undefined);
let timer: ReturnType<typeof setTimeout> | undefined;

const NOTICE_MS = 8000;

/** Tells something at the edge of the page, for some seconds. */
export function tell(text: string, undo?: () => void): void {
  notice.value = { text, undo };
  holdNotice(false);
}

/** Who points at a notice, or is in it with the keyboard, reads it. */
export function holdNotice(isHeld: boolean): void {
  clearTimeout(timer);
  if (isHeld) return;
  timer = setTimeout(() => {
    notice.value = undefined;
  }, NOTICE_MS);
}

export function focusComposer(): void {
  requestAnimationFrame(() => document.querySelector<HTMLElement>('#question')?.focus());
}

export function download(name: string, type: string, content: string): void {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
