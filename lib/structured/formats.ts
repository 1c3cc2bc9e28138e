// The formats of strings, as patterns that are anchored at both ends. Each is a subset of what the format's RFC allows, and of
// what ajv-formats takes: a model needs one way to write a date, and no validator may refuse that one.

const HOUR = '(?:[01]\\d|2[0-3])';
const SIXTY = '[0-5]\\d';
const FULL_DATE = (() => {
  const leap = '(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)';
  const long = '(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])';
  const short = '(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)';
  return `(?:\\d{4}-(?:${long}|${short}|02-(?:0[1-9]|1\\d|2[0-8]))|${leap}-02-29)`;
})();
const PARTIAL_TIME = `${HOUR}:${SIXTY}:${SIXTY}(?:\\.\\d{1,9})?`;
const OFFSET = `(?:Z|[+-]${HOUR}:${SIXTY})`;
/** Of a host's name. Two hyphens in a row would make a label one of punycode, which has rules of its own. */
const LABEL = '[A-Za-z0-9]{1,16}(?:-[A-Za-z0-9]{1,12}){0,2}';
/** The last label of a host in a URL: one that begins with a digit would be read as an address. */
const LAST_LABEL = '[A-Za-z][A-Za-z0-9]{0,16}(?:-[A-Za-z0-9]{1,12}){0,2}';
const HOST = `(?:${LABEL}\\.){0,6}${LAST_LABEL}(?::\\d{1,4})?`;
const OCTET = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)';
const IPV4 = `${OCTET}(?:\\.${OCTET}){3}`;
const HEX4 = '[0-9a-fA-F]{1,4}';
const ATOM = "[A-Za-z0-9_'+-]{1,20}";
const PATH_CHAR = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})";
const PATH = `(?:/${PATH_CHAR}*)*`;
const QUERY = `(?:\\?(?:${PATH_CHAR}|[/?])*)?`;
const FRAGMENT = `(?:#(?:${PATH_CHAR}|[/?])*)?`;

function ipv6(): string {
  const forms = [`(?:${HEX4}:){7}${HEX4}`];
  // Groups before and behind the `::`, seven of them at most.
  for (let before = 0; before <= 7; before++) {
    const head = before === 0 ? '' : `${HEX4}(?::${HEX4}){${before - 1}}`;
    const most = 7 - before;
    const tail = most === 0 ? '' : `(?:${HEX4}(?::${HEX4}){0,${most - 1}})?`;
    forms.push(`${head}::${tail}`);
  }
  return `(?:${forms.join('|')})`;
}

const DURATION = (() => {
  const part = (letter: string) => `\\d{1,4}${letter}`;
  const date = `(?:${part('Y')}(?:${part('M')}(?:${part('D')})?)?|${part('M')}(?:${part('D')})?|${part('D')})`;
  const time = `T(?:${part('H')}(?:${part('M')}(?:${part('S')})?)?|${part('M')}(?:${part('S')})?|${part('S')})`;
  return `P(?:${date}(?:${time})?|${time}|${part('W')})`;
})();

const STRINGS: Readonly<Record<string, string>> = {
  date: FULL_DATE,
  time: PARTIAL_TIME + OFFSET,
  'iso-time': PARTIAL_TIME + OFFSET,
  'date-time': `${FULL_DATE}T${PARTIAL_TIME}${OFFSET}`,
  'iso-date-time': `${FULL_DATE}T${PARTIAL_TIME}${OFFSET}`,
  duration: DURATION,
  uuid: '[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}',
  email: `${ATOM}(?:\\.${ATOM}){0,2}@(?:${LABEL}\\.){1,3}[A-Za-z]{2,12}`,
  hostname: `${LABEL}(?:\\.${LABEL}){0,6}`,
  ipv4: IPV4,
  ipv6: ipv6(),
  uri: `https?://${HOST}${PATH}${QUERY}${FRAGMENT}`,
  url: `https?://(?:${LABEL}\\.){1,6}[A-Za-z]{2,24}(?:${PATH}/${QUERY}${FRAGMENT})?`,
  'uri-reference': `(?:https?://${HOST})?(?:/${PATH_CHAR}+)*/?${QUERY}${FRAGMENT}`,
  'json-pointer': '(?:/(?:[^~/]|~[01])*)*',
  'relative-json-pointer': '(?:0|[1-9]\\d{0,8})(?:#|(?:/(?:[^~/]|~[01])*)*)',
  byte: '(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?',
};

/** Formats that a validator may check, and that no pattern here says. */
const REFUSED = ['regex', 'idn-email', 'idn-hostname', 'iri', 'iri-reference', 'uri-template'];

/** Formats that say how a value is stored or shown, and leave open which it is. */
const OPEN = ['float', 'double', 'password', 'binary'];

/** What a format asks of a string or a number. */
export type Format =
  | { kind: 'string'; pattern: string }
  | { kind: 'number'; isInteger: true; least: number; most: number }
  | { kind: 'open' }
  | { kind: 'refused' }
  | { kind: 'unknown' };

export function formatOf(name: string): Format {
  if (Object.hasOwn(STRINGS, name)) return { kind: 'string', pattern: `^(?:${STRINGS[name]})$` };
  if (name === 'int32') return { kind: 'number', isInteger: true, least: -(2 ** 31), most: 2 ** 31 - 1 };
  if (name === 'int64') {
    return { kind: 'number', isInteger: true, least: Number.MIN_SAFE_INTEGER, most: Number.MAX_SAFE_INTEGER };
  }
  if (OPEN.includes(name)) return { kind: 'open' };
  return { kind: REFUSED.includes(name) ? 'refused' : 'unknown' };
}
