/** `12.5 GB`: decimal units, as files and memory bandwidth are measured. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  let value = bytes;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : significant(value)} ${units[unit]}`;
}

/** Three digits, or as many as stand before the point. */
export function significant(value: number): string {
  if (!Number.isFinite(value)) return '-';
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

/** `6,243,584,000` */
export function formatCount(value: number): string {
  return value.toLocaleString('en-US');
}

/** `850 ms`, `12.5 s` */
export function formatMilliseconds(value: number): string {
  return value < 1000 ? `${Math.round(value)} ms` : `${significant(value / 1000)} s`;
}

/** Rows in columns that line up: the first on its left, the others on their right. */
export function formatTable(rows: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    });
  }
  return rows
    .map((row) =>
      row
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

/** Facts about something, one a line. Those without a value are left out. */
export function formatFacts(facts: readonly (readonly [label: string, value: string | undefined])[]): string {
  const known = facts.filter(([, value]) => value !== undefined);
  const width = Math.max(...known.map(([label]) => label.length)) + 2;
  return known.map(([label, value]) => `${label.padEnd(width)}${value}`).join('\n');
}
