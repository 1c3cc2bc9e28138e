import DOMPurify from 'dompurify';
import { Marked, type MarkedExtension, type Token, type TokenizerAndRendererExtension, type Tokens } from 'marked';

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => escapes[character] as string);
}

/** Where a link may lead. */
function isSafeLink(href: string): boolean {
  return /^(?:https?:|mailto:)/i.test(href);
}

const IMAGE = /^data:image\/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+$/;

/** Formulas: what they are is written by another part once it is loaded; until then their source is shown. */
const blockMath: TokenizerAndRendererExtension = {
  name: 'blockMath',
  level: 'block',
  start: (source) => source.match(/(?:^|\n) {0,3}(?:\$\$|\\\[)/)?.index,
  tokenizer(source) {
    const match = /^ {0,3}(?:\$\$([\s\S]{1,4000}?)\$\$|\\\[([\s\S]{1,4000}?)\\\])[^\S\n]*(?:\n|$)/.exec(source);
    const text = match?.[1] ?? match?.[2];
    if (!match || text === undefined || text.trim() === '' || /\n\s*\n/.test(text)) return undefined;
    return { type: 'blockMath', raw: match[0] };
  },
  renderer: ({ raw }) => `<div class="math" data-display="true">${escapeHtml(raw.trim())}</div>`,
};

const inlineMath: TokenizerAndRendererExtension = {
  name: 'inlineMath',
  level: 'inline',
  start: (source) => source.match(/\$|\\[([]/)?.index,
  tokenizer(source) {
    const display = /^(?:\$\$[^$]{1,4000}?\$\$|\\\[[\s\S]{1,4000}?\\\])/.exec(source);
    if (display) return { type: 'inlineMath', raw: display[0], isDisplay: true };
    // Amounts of money are no formulas: no space inside of the signs, no digit behind them, and no code between them.
    const match =
      /^(?:\$(?![\s$])(?:\\[\s\S]|[^$\\\n`]){0,2000}?(?:\\[\s\S]|[^\s$\\`])\$(?!\d)|\\\([\s\S]{1,2000}?\\\))/.exec(
        source,
      );
    return match ? { type: 'inlineMath', raw: match[0] } : undefined;
  },
  renderer: ({ raw, isDisplay }) =>
    `<span class="math"${isDisplay ? ' data-display="true"' : ''}>${escapeHtml(raw)}</span>`,
};

/**
 * Bold text that begins or ends with a sign, beside Chinese letters: `**注意：**请` is bold for everyone who writes Chinese,
 * and is not for CommonMark, which looks for spaces between words.
 */
const chineseStrong: TokenizerAndRendererExtension = {
  name: 'chineseStrong',
  level: 'inline',
  start: (source) => source.match(/\*\*/)?.index,
  tokenizer(source) {
    const match = /^\*\*(?![\s*])((?:[^*\n]|\*(?!\*)){1,400}?)(?<!\s)\*\*(?!\*)/.exec(source);
    const text = match?.[1];
    if (!match || text === undefined || !/\p{Script=Han}/u.test(text)) return undefined;
    if (!/^[\p{P}\p{S}]|[\p{P}\p{S}]$/u.test(text)) return undefined;
    return { type: 'chineseStrong', raw: match[0], text, tokens: this.lexer.inlineTokens(text) };
  },
  renderer({ tokens }) {
    return `<strong>${this.parser.parseInline(tokens ?? [])}</strong>`;
  },
};

const rules: MarkedExtension = {
  gfm: true,
  breaks: true,
  extensions: [blockMath, inlineMath, chineseStrong],
  renderer: {
    // HTML that the model wrote is text, but for line breaks, which tables have no other form of.
    html({ text, block }) {
      if (block) return `<p>${escapeHtml(text.trim()).replaceAll('\n', '<br>')}</p>\n`;
      return /^<br\s*\/?>$/i.test(text.trim()) ? '<br>' : escapeHtml(text);
    },
    heading({ tokens, depth }) {
      // The page has headings of its own above these.
      const level = Math.min(6, depth + 2);
      return `<h${level} class="h${depth}">${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    link({ href, title, tokens }) {
      const text = this.parser.parseInline(tokens);
      if (!isSafeLink(href)) return text;
      const about = title ? ` title="${escapeHtml(title)}"` : '';
      return `<a href="${escapeHtml(href)}"${about} target="_blank" rel="noopener noreferrer nofollow">${text}</a>`;
    },
    image({ href, text }) {
      // Another host's image would tell that host who reads the answer, and when.
      if (IMAGE.test(href)) return `<img src="${href}" alt="${escapeHtml(text)}">`;
      if (!isSafeLink(href)) return escapeHtml(text);
      return `<a href="${escapeHtml(href)}" target="_blank" rel="noopener noreferrer nofollow">${escapeHtml(text || href)}</a>`;
    },
    listitem(item) {
      const body = this.parser.parse(item.tokens);
      return `<li${item.task ? ' class="task"' : ''}>${body}</li>\n`;
    },
    checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
  },
};

const marked = new Marked(rules);

const TAGS = [
  ...['a', 'blockquote', 'br', 'code', 'del', 'div', 'em', 'h3', 'h4', 'h5', 'h6', 'hr', 'img', 'li', 'ol', 'p', 'pre'],
  ...['span', 'strong', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul'],
];
const ATTRIBUTES = ['align', 'alt', 'class', 'data-display', 'href', 'rel', 'src', 'start', 'target', 'title'];

/** HTML of {@link toHtml} or of the highlighter, as nodes that can do nothing but be seen. */
export function sanitize(html: string): DocumentFragment {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    // The pattern below is for addresses, and DOMPurify holds every attribute against it that is not said to have none.
    ADD_URI_SAFE_ATTR: ['align', 'data-display', 'rel', 'start', 'target'],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|data:image\/(?:png|jpeg|gif|webp);base64,)/i,
    RETURN_DOM_FRAGMENT: true,
  });
}

// DOMPurify takes a link's target away, as a window that was opened so could reach its opener: rel forbids that.
DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName === 'A') {
    node.setAttribute('target', '_blank');
    node.setAttribute('rel', 'noopener noreferrer nofollow');
  }
});

/** Definitions of links, `[name]: address`, which hold in all blocks. */
export type Links = Record<string, Pick<Tokens.Link, 'href' | 'title'>>;

/** A block is shown as it was written where it is longer than this: no answer is, and the parser's time is not linear. */
const MOST_LETTERS = 60_000;
const MOST_NESTING = 24;
/** As many signs that may begin or end something as one paragraph or cell has at most; with more it is shown as written. */
const MOST_MARKERS = 1000;

/** The blocks of a text, each with what it was written as. */
export function blocksOf(text: string, links: Links): Token[] {
  const lexer = new marked.Lexer(marked.defaults);
  Object.assign(lexer.tokens.links, links);
  // As lexer.lex() does it, but for texts whose signs would take seconds: each is looked at against all others.
  const tokens = lexer.blockTokens(tamed(text).replace(/\r\n?/g, '\n'), lexer.tokens);
  for (const { src, tokens: inline } of lexer.inlineQueue) {
    if ((src.match(/[*_~`[\]!<\\$]/g)?.length ?? 0) > MOST_MARKERS) {
      inline.push({ type: 'text', raw: src, text: src, escaped: false } satisfies Tokens.Text);
    } else lexer.inlineTokens(src, inline);
  }
  Object.assign(links, lexer.tokens.links);
  return tokens;
}

/** Markers that nest deeper than anybody writes lose what is too much, as each level is a call of the parser. */
function tamed(text: string): string {
  if (!/^[^\S\n]*(?:[>*+-][^\S\n]*|\d+[.)][^\S\n]+){24}/m.test(text) && !/^[^\S\n]{80}/m.test(text)) {
    return text;
  }
  return text
    .split('\n')
    .map((line) => {
      const markers = /^(?:[^\S\n]*(?:[>*+-]|\d+[.)](?=[^\S\n])))+/.exec(line)?.[0] ?? '';
      const kept = /^(?:[^\S\n]*(?:[>*+-]|\d+[.)](?=[^\S\n]))){1,24}/.exec(markers)?.[0] ?? '';
      // A line of dashes or stars is a rule, however long.
      if (markers.length === kept.length || /^[\s*-]+$/.test(line)) return line;
      return kept + line.slice(markers.length);
    })
    .join('\n');
}

export function blockToNodes(token: Token): DocumentFragment {
  if (token.type !== 'code' && (token.raw.length > MOST_LETTERS || depthOf(token) > MOST_NESTING * 2)) {
    return asText(token.raw);
  }
  try {
    return sanitize(marked.parser([token]));
  } catch {
    return asText(token.raw);
  }
}

export function asText(text: string): DocumentFragment {
  const fragment = document.createDocumentFragment();
  const paragraph = document.createElement('p');
  paragraph.className = 'as-written';
  paragraph.textContent = text;
  fragment.append(paragraph);
  return fragment;
}

function depthOf(token: Token): number {
  const below = [
    ...('tokens' in token ? (token.tokens ?? []) : []),
    ...('items' in token ? (token.items as Token[]) : []),
  ];
  let [depth, level] = [0, below];
  while (level.length > 0 && depth <= MOST_NESTING * 2) {
    depth++;
    level = level.flatMap((each) => [
      ...('tokens' in each ? (each.tokens ?? []) : []),
      ...('items' in each ? (each.items as Token[]) : []),
    ]);
  }
  return depth;
}
