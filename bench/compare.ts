// What changed between two runs: npm run bench -- --compare OLD NEW.
//
// Of each row that both have: its time, bytes and rate, and whether its goal is met.

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

/** A change of this part is none where nothing says how much a row varies. */
const LEAST_CHANGE = 0.05;

interface Measure {
  name: string;
  key: 'nsPerOperation' | 'bytesPerPage' | 'bytes' | 'perSecond';
  shown(value: number): string;
}
const MEASURES: readonly Measure[] = [
  { name: 'time', key: 'nsPerOperation', shown: timeOf },
  { name: 'bytes a page', key: 'bytesPerPage', shown: (value) => value.toFixed(3) },
  { name: 'bytes', key: 'bytes', shown: String },
  { name: 'a second', key: 'perSecond', shown: (value) => value.toPrecision(3) },
];

/** What is measured of a row; a rate that is one over the time says nothing that the time does not. */
function measured(row: Row, { key }: Measure): number | null {
  const value = row[key] ?? null;
  if (key !== 'perSecond' || value === null || row.nsPerOperation === null) return value;
  return Math.abs((value * row.nsPerOperation) / 1e9 - 1) < 0.001 ? null : value;
}

function isChanged(old: Row, row: Row, measure: Measure): boolean {
  const was = measured(old, measure);
  const is = measured(row, measure);
  if (was === null || is === null || was === is) return was !== is;
  if (measure.key === 'nsPerOperation' && old.spread !== undefined && row.spread !== undefined) {
    return old.spread[0] > row.spread[1] || row.spread[0] > old.spread[1];
  }
  return Math.abs(is - was) > LEAST_CHANGE * Math.abs(was);
}

function goalOf(old: Row, row: Row): string {
  if (old.met === row.met) return '';
  if (row.met === null) return 'no longer judged';
  return row.met ? 'now met' : 'now missed';
}

const guestOf = (row: Row) =>
  row.guestBytes === 0
    ? ''
    : [sizeOf(row.guestBytes), row.density, row.leaves, row.roots === 'mirror' ? 'mirror' : ''].join(' ').trim();
const operationOf = (row: Row) => `${row.operation} ${row.order ?? ''}`.trim();

/** A line for each row of `some` that `others` have not. */
function missingOf(name: string, some: ReadonlyMap<string, Row>, others: ReadonlyMap<string, Row>): string[] {
  return [...some]
    .filter(([key]) => !others.has(key))
    .map(([, row]) => {
      const planes = row.planes === 0 ? '' : `${row.planes} planes`;
      const parts = [row.question, guestOf(row), operationOf(row), planes, row.contender];
      return `only in ${name}: ${parts.filter(Boolean).join(', ')}`;
    });
}

/** A table of what changed in the rows that both files have, then the rows that only one has. */
export function compare(oldFile: string, newFile: string): string {
  const [before, after] = [oldFile, newFile].map((file) => new Map(rowsOf(file).map((row) => [keyOf(row), row])));
  const table = new Table({
    head: ['question', 'guest', 'operation', 'contender', 'what', 'old', 'new', 'old/new', 'goal'],
    style: { head: [], border: [], compact: true },
  });
  let same = 0;
  for (const [key, row] of after) {
    const old = before.get(key);
    if (old === undefined) continue;
    const goal = goalOf(old, row);
    let changed = MEASURES.filter((measure) => isChanged(old, row, measure));
    // A goal may turn on what a row's own values do not show: its ratios to native. It stands beside the first of them.
    if (changed.length === 0 && goal !== '') {
      changed = MEASURES.filter((measure) => measured(row, measure) !== null).slice(0, 1);
    }
    if (changed.length === 0) same++;
    for (const measure of changed) {
      const [was, is] = [measured(old, measure), measured(row, measure)];
      table.push([
        row.question,
        guestOf(row),
        operationOf(row),
        row.contender,
        measure.name,
        was === null ? '' : measure.shown(was),
        is === null ? '' : measure.shown(is),
        was === null || is === null || is === 0 ? '' : (was / is).toFixed(2),
        goal,
      ]);
    }
  }
  const lines = [...missingOf('OLD', before, after), ...missingOf('NEW', after, before)];
  lines.push(
    `${same} rows did not change beyond their spread, or by more than ${LEAST_CHANGE * 100}% where they have none`,
  );
  return `${table.toString()}\n${lines.join('\n')}`;
}
