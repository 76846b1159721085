// Whether what a peer is compiled to is there already: each question of the bench is a process of its own.

import { statSync } from 'node:fs';

/** Whether `out` is there and no older than any of the files it is made from. */
export function isBuilt(out: string, from: readonly string[]): boolean {
  const changed = (file: string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs;
  const at = changed(out);
  return at !== undefined && from.every((file) => (changed(file) ?? Number.POSITIVE_INFINITY) <= at);
}
