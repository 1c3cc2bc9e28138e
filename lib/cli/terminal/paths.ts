import { homedir } from 'node:os';
import path from 'node:path';

/** Where chats are saved: `CHATGLM_SESSIONS`, or the user's folder for data. */
export function sessionsPath(env: NodeJS.ProcessEnv = process.env): string {
  if (env.CHATGLM_SESSIONS) return path.resolve(env.CHATGLM_SESSIONS);
  if (process.platform === 'win32' && env.LOCALAPPDATA) return path.join(env.LOCALAPPDATA, 'chatglm', 'sessions');
  return path.join(env.XDG_DATA_HOME || path.join(homedir(), '.local', 'share'), 'chatglm', 'sessions');
}

/** Whether what was given for a session's name is the path of a file. */
export function isPath(name: string): boolean {
  return name.includes('/') || name.includes(path.sep) || name.endsWith('.json');
}

/** A path as people type it, with `~` for their home. */
export function expandHome(name: string): string {
  return path.resolve(name.replace(/^~(?=\/|$)/, homedir()));
}
