// What changed between two runs: npm run bench -- --compare OLD NEW.

import { readFileSync } from 'node:fs';
import Table from 'cli-table3';
import { type Row, UsageError } from './rows.ts';
import { sizeOf, timeOf } from './table.ts';

const keyOf = (row: Row) =>
  [
    row.question,
    row.guestBytes,
    row.density,
    row.leaves,
    row.roots,
    row.planes,
    row.operation,
    row.order,
    row.contender,
  ].join('|');

function rowsOf(file: string): Row[] {
  let read: { rows?: Row[] } | null;
  try {
    read = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new UsageError(`${file} cannot be read: ${(error as Error).message}`);
  }
  if (!Array.isArray(read?.rows)) throw new UsageError(`${file} holds no rows of a bench`);
  return read.rows;
}

/** A table of the rows that both files have; a change within both spreads is left out unless a goal changed. */
export function compare(oldFile: string, newFile: string): string {
  const before = new Map(rowsOf(oldFile).map((row) => [keyOf(row), row]));
  const table = new Table({
    head: ['guest', 'operation', 'contender', 'old', 'new', 'old/new', 'goal'],
    style: { head: [], border: [], compact: true },
  });
  let same = 0;
  for (const row of rowsOf(newFile)) {
    const old = before.get(keyOf(row));
    if (old === undefined || old.nsPerOperation === null || row.nsPerOperation === null) continue;
    const overlap =
      old.spread !== undefined &&
      row.spread !== undefined &&
      old.spread[0] <= row.spread[1] &&
      row.spread[0] <= old.spread[1];
    if (overlap && old.met === row.met) {
      same++;
      continue;
    }
    const goal = old.met === row.met ? '' : row.met ? 'now met' : 'now missed';
    table.push([
      `${sizeOf(row.guestBytes)} ${row.density} ${row.leaves}`.trim(),
      `${row.operation} ${row.order ?? ''}`.trim(),
      row.contender,
      timeOf(old.nsPerOperation),
      timeOf(row.nsPerOperation),
      (old.nsPerOperation / row.nsPerOperation).toFixed(2),
      goal,
    ]);
  }
  return `${table.toString()}\n${same} rows did not change beyond their spread`;
}
