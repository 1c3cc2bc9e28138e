export function errorProblem(error: unknown): string | undefined;
export function longestTurn(task: () => Promise<unknown>): Promise<number>;
export function pollution(): string | undefined;
