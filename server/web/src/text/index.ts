import { language } from '../state/settings.js';
import { en, type Texts } from './en.js';
import { zh } from './zh.js';

type Names<Kind> = { [Name in keyof Texts]: Texts[Name] extends Kind ? Name : never }[keyof Texts];
type Call = (...values: never[]) => string;

export function texts(): Texts {
  return language.value === 'zh' ? zh : en;
}

/** A text of the page in the language that it has now. */
export function t<Name extends Names<string>>(name: Name): string;
export function t<Name extends Names<Call>>(name: Name, ...values: Parameters<Extract<Texts[Name], Call>>): string;
export function t(name: keyof Texts, ...values: unknown[]): string {
  const text = texts()[name];
  return typeof text === 'function' ? (text as Call)(...(values as never[])) : (text as string);
}

export function formatNumber(value: number, digits = 0): string {
  const locale = language.value === 'zh' ? 'zh-CN' : 'en';
  return new Intl.NumberFormat(locale, { maximumFractionDigits: digits }).format(value);
}
