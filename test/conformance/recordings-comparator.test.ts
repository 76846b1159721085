// What is compared can't be weakened silently: each compared field of a recording is corrupted in turn and held against
// a player of the sound recording, and each corruption must show. The sound recording must show nothing.

import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { COMPARED_STATS, compareOperation, EVENT_FIELDS, EVENT_KINDS } from '../../src/cli/conform/compare.ts';
import {
  listRecordings,
  type RawChange,
  type RawEvent,
  type RecordedOperation,
  readFile,
} from '../../src/cli/conform/reader.ts';
import { emptyResult, runRecording } from '../../src/cli/conform/run.ts';
import { ChangeRuns, CLASS_MASK, LEAF, MMIO, meaningOfSpte, NONPRESENT, TABLE } from '../../src/cli/conform/unfold.ts';
import { Player, playable } from './recordings-player.ts';

const FOLDER = join(import.meta.dirname, '../recorded');

/** Recordings that between them hold every compared field. */
const CORRUPTED = ['a02_', 'a05_', 'b06_', 'c04_', 'c07_', 'd08_', 'e01_', 'f01_', 'i01_'];

type Writable<T> = { -readonly [K in keyof T]: T[K] };
type Corruption = readonly [what: string, change: (operation: Writable<RecordedOperation>) => void];

function flipped(hex: string, bit: bigint): string {
  return (BigInt(`0x${hex}`) ^ (1n << bit)).toString(16);
}

function* changeCorruptions(changes: readonly RawChange[]): Generator<Corruption> {
  const edit = (k: number, at: number, value: unknown): Corruption[1] => {
    return (operation) => {
      const edited = [...changes[k]];
      edited[at] = value as never;
      operation.changes = changes.with(k, edited as unknown as RawChange);
    };
  };
  for (const [k, change] of changes.entries()) {
    const [asId, gfn, level, oldHex, newHex] = change;
    const oldMeaning = meaningOfSpte(oldHex, level);
    const newMeaning = meaningOfSpte(newHex, level);
    yield [`changes[${k}].as_id`, edit(k, 0, asId ^ 1)];
    yield [`changes[${k}].gfn`, edit(k, 1, gfn + 1)];
    yield [`changes[${k}].level`, edit(k, 2, level === 5 ? 4 : level + 1)];
    for (const [name, at, hex, meaning] of [
      ['old', 3, oldHex, oldMeaning],
      ['new', 4, newHex, newMeaning],
    ] as const) {
      const is = meaning & CLASS_MASK;
      // W, A, D, host-writable, mmu-writable, NX, and the bit that tells a present SPTE.
      const bits =
        is === LEAF ? [1n, 5n, 6n, 9n, 10n, 63n, 11n] : is === TABLE ? [11n] : is === MMIO ? [3n, 12n] : [5n];
      for (const bit of bits) yield [`changes[${k}].${name} bit ${bit}`, edit(k, at, flipped(hex, bit))];
      if (is !== NONPRESENT) yield [`changes[${k}].${name} gone`, edit(k, at, '8000000000000000')];
    }
    if ((oldMeaning & CLASS_MASK) === LEAF && (newMeaning & CLASS_MASK) === LEAF) {
      yield [`changes[${k}].pfn`, edit(k, 4, flipped(newHex, 20n))];
    }
    if (change.length === 9) {
      yield [`changes[${k}] one more`, edit(k, 5, change[5]! + 1)];
      yield [`changes[${k}] one less`, edit(k, 5, change[5]! - 1)];
      yield [`changes[${k}].gfn_step`, edit(k, 6, change[6]! + 1)];
    }
    yield [`changes[${k}] left out`, (operation) => (operation.changes = changes.toSpliced(k, 1))];
    yield [`changes[${k}] twice`, (operation) => (operation.changes = changes.toSpliced(k, 0, change))];
  }
}

function* eventCorruptions(events: readonly RawEvent[]): Generator<Corruption> {
  const set = (k: number, event: unknown): Corruption[1] => {
    return (operation) => (operation.events = events.with(k, event as RawEvent));
  };
  const next = (value: unknown): unknown => {
    if (typeof value === 'number') return value + 1;
    const text = value as string;
    return text.startsWith('0x') ? `0x${(BigInt(text) ^ 1n).toString(16)}` : flipped(text, 12n);
  };
  /** Corrupts one plain event in each field that is compared; `rebuild` puts it back in its place. */
  function* plain(event: RawEvent, what: string, rebuild: (event: RawEvent) => Corruption[1]): Generator<Corruption> {
    const [pos, name, ...fields] = event;
    const isRequest = name === 'req';
    if (!EVENT_KINDS.has(name) || (isRequest && fields[0] !== 768 && fields[0] !== 807)) return;
    yield [`${what} ${name}.pos`, rebuild([pos + 1, name, ...fields])];
    yield [`${what} ${name}.name`, rebuild([pos, 'nothing', ...fields])];
    for (const [j, [property]] of EVENT_FIELDS[name].entries()) {
      if (property === undefined) continue;
      yield [`${what} ${name}.${property}`, rebuild([pos, name, ...fields.with(j, next(fields[j]))])];
    }
  }
  for (const [k, event] of events.entries()) {
    if (event[1] !== 'rep') {
      yield* plain(event, `events[${k}]`, (edited) => set(k, edited));
      if (!EVENT_KINDS.has(event[1]) || (event[1] === 'req' && event[2] !== 768 && event[2] !== 807)) continue;
      yield [`events[${k}] left out`, (operation) => (operation.events = events.toSpliced(k, 1))];
      yield [`events[${k}] twice`, (operation) => (operation.events = events.toSpliced(k, 0, event))];
      continue;
    }
    const [pos, , count, inner, steps] = event as unknown as [number, string, number, RawEvent[], number[][]];
    if (!inner.some(([, name]) => EVENT_KINDS.has(name))) continue;
    yield [`events[${k}] one more`, set(k, [pos, 'rep', count + 1, inner, steps])];
    yield [`events[${k}] one less`, set(k, [pos, 'rep', count - 1, inner, steps])];
    for (const [m, repeated] of inner.entries()) {
      yield* plain(repeated, `events[${k}][${m}]`, (edited) =>
        set(k, [pos, 'rep', count, inner.with(m, edited), steps]),
      );
      if (!EVENT_KINDS.has(repeated[1])) continue;
      for (const j of repeated.keys()) {
        if (j === 1 || (j > 1 && EVENT_FIELDS[repeated[1]][j - 2]?.[0] === undefined)) continue;
        const stepsOf = steps.with(m, steps[m].with(j, steps[m][j] + 4096));
        yield [`events[${k}][${m}] step ${j}`, set(k, [pos, 'rep', count, inner, stepsOf])];
      }
    }
  }
}

function* corruptions(operation: RecordedOperation): Generator<Corruption> {
  yield ['ret', (o) => (o.ret = operation.ret + 1)];
  yield ['errno', (o) => (o.errno = operation.errno === undefined ? 'EINVAL' : undefined)];
  if (operation.errno !== undefined) yield ['errno other', (o) => (o.errno = 'ENXIO')];
  if (operation.leftGpa !== undefined) {
    yield ['left_gpa', (o) => (o.leftGpa = operation.leftGpa! ^ 0x1000n)];
    yield ['left_gpa none', (o) => (o.leftGpa = undefined)];
    yield ['left_size', (o) => (o.leftSize = operation.leftSize! ^ 0x1000n)];
  }
  for (const [k, exit] of (operation.exits ?? []).entries()) {
    const exits = operation.exits!;
    yield [`exits[${k}] left out`, (o) => (o.exits = exits.toSpliced(k, 1))];
    for (const [j, field] of exit.entries()) {
      const value = typeof field === 'number' ? field + 1 : `${field}0`;
      yield [`exits[${k}][${j}]`, (o) => (o.exits = exits.with(k, exit.with(j, value) as [string]))];
    }
  }
  if (operation.dirty !== undefined) {
    const { dirty } = operation;
    yield ['dirty more', (o) => (o.dirty = [...dirty, [1 << 20, 1]])];
    for (const [k, [first, count]] of dirty.entries()) {
      yield [`dirty[${k}].first`, (o) => (o.dirty = dirty.with(k, [first + 1, count]))];
      yield [`dirty[${k}].count`, (o) => (o.dirty = dirty.with(k, [first, count + 1]))];
    }
  }
  for (const name of COMPARED_STATS) {
    yield [`stats.${name}`, (o) => (o.stats = { ...operation.stats, [name]: (operation.stats[name] ?? 0) + 1 })];
  }
  yield ['stats of no known name', (o) => (o.stats = { ...operation.stats, 'vm.unheard_of': 1 })];
  if (operation.tables !== undefined) yield ['tables', (o) => (o.tables = operation.tables! + 1)];
  if (operation.leafs !== undefined) {
    for (const k of [0, 1, 2]) {
      yield [
        `leafs[${k}]`,
        (o) => (o.leafs = operation.leafs!.with(k, operation.leafs![k] + 1) as [number, number, number]),
      ];
    }
  }
  if (operation.h !== undefined) yield ['h', (o) => (o.h = operation.h === '00000000' ? '00000001' : '00000000')];
  for (const [k, run] of (operation.state ?? []).entries()) {
    const state = operation.state!;
    yield [`state[${k}] left out`, (o) => (o.state = state.toSpliced(k, 1))];
    yield [`state[${k}].gfn`, (o) => (o.state = state.with(k, run.with(2, run[2] + 1) as never))];
    yield [`state[${k}].count`, (o) => (o.state = state.with(k, run.with(3, run[3] + 1) as never))];
    for (const bit of [1n, 5n, 6n, 9n, 10n, 63n]) {
      const flags = flipped(run[4], bit);
      yield [`state[${k}].flags bit ${bit}`, (o) => (o.state = state.with(k, run.with(4, flags) as never))];
    }
  }
  yield* changeCorruptions(operation.changes);
  yield* eventCorruptions(operation.events);
}

const files = listRecordings([FOLDER]).filter((file) => !file.includes('gfn-range-calls'));

describe('the comparison of a recording', () => {
  test('finds nothing between a recording and its own playback', () => {
    const result = emptyResult();
    for (const file of files) {
      const recording = readFile(file);
      if ('vectors' in recording) continue;
      result.files++;
      runRecording(playable(recording), new Player(recording), result);
    }
    expect(result.details).toEqual([]);
    expect(result.files).toBeGreaterThan(70);
    expect(result.changes).toBe(1_277_608);
  });

  for (const name of CORRUPTED) {
    test(`sees every corruption of ${name}*`, () => {
      const recording = readFile(files.find((file) => file.includes(`/${name}`))!);
      if ('vectors' in recording) throw new Error('no recording');
      const player = new Player(recording);
      const unseen: string[] = [];
      let made = 0;
      for (const operation of playable(recording).operations) {
        const outcome = player.perform(operation);
        for (const [what, change] of corruptions(operation)) {
          // While a second vCPU runs, A and D of old values are the hardware's to change at any time.
          if (player.secondVcpuRuns && /\.(old|flags) bit [56]$/.test(what)) continue;
          const corrupted = { ...operation };
          change(corrupted);
          made++;
          if (compareOperation(corrupted, outcome, player).length === 0) unseen.push(`${operation.i}: ${what}`);
        }
      }
      expect(unseen).toEqual([]);
      expect(made).toBeGreaterThan(100);
    });
  }

  test('sees a corruption in the middle of a folded run', () => {
    const changes: RawChange[] = [[0, 512, 1, '8000000000000000', '120000e47', 512, 1, 0, 4096]];
    const runs = new ChangeRuns(changes);
    expect(runs.next()).toBe(true);
    expect(runs.count).toBe(512);
    // A step that changes a permission on the way takes the run apart.
    const uneven = new ChangeRuns([[0, 512, 1, '8000000000000000', '120000e47', 3, 1, 0, 4097]]);
    expect([uneven.next(), uneven.count, uneven.next(), uneven.next(), uneven.next()]).toEqual([
      true,
      1,
      true,
      true,
      false,
    ]);
  });
});
