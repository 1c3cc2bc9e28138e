export function forEachDamage(
  file: string,
  positions: readonly number[],
  check: (damage: string) => Promise<void>,
): Promise<void>;
