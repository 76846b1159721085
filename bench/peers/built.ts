// Whether what a peer is compiled to is there already: each question of the bench is a process of its own.

import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';

/** Whether `out` is there and no older than any of the files it is made from. */
export function isBuilt(out: string, from: readonly string[]): boolean {
  const changed = (file: string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs;
  const at = changed(out);
  return at !== undefined && from.every((file) => (changed(file) ?? Number.POSITIVE_INFINITY) <= at);
}

/** A name of its own for `out` as it comes out where `parts` are so: the machine, the compiler. */
export function keyed(out: string, parts: readonly string[]): string {
  return `${out}-${createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 12)}`;
}
