// Rows as text.

import Table from 'cli-table3';
import type { Row } from './rows.ts';
import { GIB, TIB } from './workloads.ts';

const STYLE = { head: [], border: [], compact: true };

export function sizeOf(bytes: number): string {
  if (bytes === 0) return '';
  return bytes >= TIB ? `${bytes / TIB} TiB` : `${bytes / GIB} GiB`;
}
export function timeOf(ns: number | null): string {
  if (ns === null) return '';
  if (ns < 1000) return `${ns.toPrecision(3)} ns`;
  if (ns < 1e6) return `${(ns / 1e3).toPrecision(3)} us`;
  return ns < 1e9 ? `${(ns / 1e6).toPrecision(3)} ms` : `${(ns / 1e9).toPrecision(3)} s`;
}
const times = (ratio: number | null) => (ratio === null ? '' : `${Number(ratio.toPrecision(3))}x`);

/** What else a row measured: bytes, rates. */
function restOf(row: Row): string {
  const parts = [];
  if (row.bytesPerPage !== undefined) parts.push(`${row.bytesPerPage.toFixed(3)} B/page`);
  // Of scale it is all of the engine's memory, which the note has.
  if (row.bytes !== undefined && row.question !== 'scale') parts.push(`${row.bytes} bytes`);
  if (row.perSecond !== undefined) parts.push(`${(row.perSecond / 1e6).toPrecision(3)} M/s`);
  if (row.note !== undefined) parts.push(row.note);
  return parts.join('; ');
}

/** Every row; a guest's rows stand together. */
export function tableOf(rows: readonly Row[]): string {
  const table = new Table({
    head: [
      'question',
      'guest',
      'operation',
      'contender',
      'per page',
      'per operation',
      'quartiles',
      'vs iter',
      'vs nested',
      'A: wasm/C',
      'goal',
      'more',
    ],
    style: STYLE,
  });
  for (const row of rows) {
    const guest = [
      sizeOf(row.guestBytes),
      row.guestBytes === 0 ? '' : `${row.density} ${row.leaves}`,
      row.roots === 'mirror' ? 'mirror' : '',
    ];
    table.push([
      row.question,
      guest.filter(Boolean).join(' '),
      row.operation + (row.order === undefined ? '' : ` ${row.order}`),
      row.contender,
      timeOf(row.nsPerPage),
      timeOf(row.nsPerOperation),
      row.spread === undefined ? '' : row.spread.map(timeOf).join(' – '),
      times(row.ratioToNativeIter),
      times(row.ratioToNativeNested),
      times(row.ratioSameAlgorithm),
      row.met === null ? '' : row.met ? 'met' : 'MISSED',
      restOf(row),
    ]);
  }
  return table.toString();
}

/** The rows that answer a goal, and whether they meet it. */
export function goalsOf(rows: readonly Row[]): string {
  const table = new Table({ head: ['goal', 'guest', 'operation', 'found', 'met'], style: STYLE });
  for (const row of rows.filter(({ goal }) => goal !== null)) {
    const ratios = [times(row.ratioToNativeIter), times(row.ratioToNativeNested)].filter(Boolean).join(' / ');
    const found = [timeOf(row.nsPerOperation), ratios, restOf(row)].filter(Boolean).join('; ');
    const guest = row.guestBytes === 0 ? '' : `${sizeOf(row.guestBytes)} ${row.density}`;
    table.push([
      row.goal!,
      guest,
      `${row.operation} ${row.order ?? ''}`.trim(),
      found,
      row.met === null ? '' : row.met ? 'yes' : 'NO',
    ]);
  }
  return table.toString();
}
