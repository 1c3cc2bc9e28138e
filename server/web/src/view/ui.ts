import { signal } from '@preact/signals';

/** Whether letters are written on the screen, as on a phone. */
export function hasScreenKeyboard(): boolean {
  return matchMedia('(hover: none) and (pointer: coarse)').matches;
}

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

/** Nothing is focused where that would bring a keyboard onto the screen. */
export function focusComposer(): void {
  if (hasScreenKeyboard()) return;
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
