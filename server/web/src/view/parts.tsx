import { useSignal } from '@preact/signals';
import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import { t } from '../text/index.js';
import { Icon, type IconName } from './icons.js';

interface IconButtonProps extends Omit<JSX.ButtonHTMLAttributes<HTMLButtonElement>, 'icon' | 'label'> {
  icon: IconName;
  label: string;
}

/** A button that shows a sign; its name is for screen readers and for those who point at it. */
export function IconButton({ icon, label, class: more, ...rest }: IconButtonProps) {
  return (
    <button type="button" class={`icon-button ${more ?? ''}`} aria-label={label} title={label} {...rest}>
      <Icon name={icon} />
    </button>
  );
}

/** Copies also where the page has no secure context, in which browsers have no `navigator.clipboard`. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement('textarea');
    field.value = text;
    field.className = 'unseen';
    const focused = document.activeElement as HTMLElement | null;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand('copy');
    field.remove();
    focused?.focus();
    return isCopied;
  }
}

export function CopyButton({ text }: { text: () => string }) {
  const isCopied = useSignal(false);
  const timer = useRef<ReturnType<typeof setTimeout>>();
  useEffect(() => () => clearTimeout(timer.current), []);
  return (
    <IconButton
      icon={isCopied.value ? 'check' : 'copy'}
      label={isCopied.value ? t('copied') : t('copy')}
      onClick={async () => {
        isCopied.value = await copyText(text());
        clearTimeout(timer.current);
        timer.current = setTimeout(() => {
          isCopied.value = false;
        }, 1500);
      }}
    />
  );
}

export interface MenuItem {
  label: string;
  icon: IconName;
  act: () => void;
  isDangerous?: boolean;
}

/** A button with a menu, which arrows and letters move in. */
export function Menu({ label, items }: { label: string; items: MenuItem[] }) {
  const isOpen = useSignal(false);
  const root = useRef<HTMLDivElement>(null);
  const button = () => root.current?.querySelector<HTMLButtonElement>('button');
  const close = (isFocused = true) => {
    isOpen.value = false;
    if (isFocused) button()?.focus();
  };
  useLayoutEffect(() => {
    const list = root.current?.querySelector<HTMLElement>('[role=menu]');
    if (!list || !root.current) return;
    // Lists that scroll would cut the menu off: it stands in the window, beside its button.
    const { bottom, top, right, left } = root.current.getBoundingClientRect();
    const isBelow = bottom + list.offsetHeight + 8 < innerHeight;
    list.style.top = `${isBelow ? bottom + 4 : Math.max(8, top - list.offsetHeight - 4)}px`;
    const start = right - list.offsetWidth < 8 ? left : right - list.offsetWidth;
    list.style.left = `${Math.min(start, innerWidth - list.offsetWidth - 8)}px`;
    list.querySelector<HTMLElement>('[role=menuitem]')?.focus();
    const leave = (event: Event) => {
      if (!root.current?.contains(event.target as Node)) close(false);
    };
    addEventListener('pointerdown', leave);
    addEventListener('scroll', leave, true);
    return () => {
      removeEventListener('pointerdown', leave);
      removeEventListener('scroll', leave, true);
    };
  }, [isOpen.value]);
  const move = (event: KeyboardEvent) => {
    const all = [...(root.current?.querySelectorAll<HTMLElement>('[role=menuitem]') ?? [])];
    const at = all.indexOf(document.activeElement as HTMLElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
    if (next !== undefined) all[next % all.length]?.focus();
    else if (event.key === 'Escape') close();
    else if (event.key === 'Tab') close(false);
    else return;
    if (event.key !== 'Tab') event.preventDefault();
    event.stopPropagation();
  };
  return (
    <div class="menu" ref={root}>
      <IconButton
        icon="more"
        label={label}
        aria-haspopup="menu"
        aria-expanded={isOpen.value}
        onClick={() => {
          isOpen.value = !isOpen.value;
        }}
      />
      {isOpen.value && (
        <div role="menu" aria-label={label} tabIndex={-1} onKeyDown={move}>
          {items.map(({ label: name, icon, act, isDangerous }) => (
            <button
              key={name}
              type="button"
              role="menuitem"
              tabIndex={-1}
              class={isDangerous ? 'is-dangerous' : ''}
              onClick={() => {
                close();
                act();
              }}
            >
              <Icon name={icon} />
              {name}
            </button>
          ))}
        </div>
      )}
    </div>
  );
}

interface DialogProps {
  label: string;
  class?: string;
  onClose: () => void;
  children: ComponentChildren;
}

/** A dialog over the page. The browser keeps the focus in it, and gives it back. */
export function Dialog({ label, class: name, onClose, children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const focused = document.activeElement as HTMLElement | null;
    dialog.current?.showModal();
    return () => focused?.focus();
  }, []);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape closes a dialog without our help.
    <dialog
      ref={dialog}
      class={name}
      aria-label={label}
      onClose={onClose}
      onClick={(event) => {
        if (event.target === event.currentTarget) dialog.current?.close();
      }}
    >
      <div class="dialog-body">{children}</div>
    </dialog>
  );
}
