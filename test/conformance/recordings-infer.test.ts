// A huge page that the recorded host could not allocate shows nowhere in the recording but in what follows. It is inferred
// once per region and population, counted, and binds what follows.
//
// No recording at hand has one, so the test makes its own: the simulator replays a recording while the host fails to
// allocate, and what it answers is written down in the format of the recordings.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import {
  canonicalCrc,
  EVENT_FIELDS,
  type Outcome,
  type TracedEvent,
  toMeaning,
} from '../../src/cli/conform/compare.ts';
import { conform } from '../../src/cli/conform/conform.ts';
import { HostInputs } from '../../src/cli/conform/host-inputs.ts';
import { type RecordedOperation, readFile } from '../../src/cli/conform/reader.ts';
import { type FailedHugePages, Replay } from '../../src/cli/conform/replay.ts';
import {
  ACCESSED,
  CLASS_MASK,
  DIRTY,
  EXECUTABLE,
  FROZEN,
  HOST_WRITABLE,
  LEAF,
  MMIO,
  MMU_WRITABLE,
  NONPRESENT,
  WRITABLE,
} from '../../src/cli/conform/unfold.ts';

const FOLDER = join(import.meta.dirname, '../recorded');
const engine = { debug: process.env.EPTSIM_BUILD === 'debug' };
const folder = mkdtempSync(join(tmpdir(), 'eptsim-infer-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** An SPTE with this meaning; a leaf's PFN is its gfn, so that one gfn keeps its page. */
function toSpte(meaning: number, gfn: number, level: number): string {
  const frame = BigInt(gfn) << 12n;
  const bits = (...pairs: [number, bigint][]) =>
    pairs.reduce((sum, [flag, bit]) => sum | ((meaning & flag) !== 0 ? 1n << bit : 0n), 0n);
  switch (meaning & CLASS_MASK) {
    case NONPRESENT:
      return '8000000000000000';
    case FROZEN:
      return '80000000000005a0';
    case MMIO:
      return ((1n << 51n) | frame | (BigInt(meaning >> 9) << 3n) | 7n).toString(16);
    case LEAF: {
      const flags = bits([WRITABLE, 1n], [ACCESSED, 5n], [DIRTY, 6n], [HOST_WRITABLE, 9n], [MMU_WRITABLE, 10n]);
      const noExecute = (meaning & EXECUTABLE) === 0 ? 1n << 63n : 0n;
      return (0x805n | (level > 1 ? 0x80n : 0n) | flags | noExecute | frame).toString(16);
    }
    default:
      return (0x827n | frame).toString(16);
  }
}

function toLine(operation: RecordedOperation, outcome: Outcome): string {
  const changes: unknown[] = [];
  const events: unknown[] = [];
  let pos = 0;
  // biome-ignore lint/suspicious/noExplicitAny: the events differ in their properties
  for (const event of outcome.trace as (TracedEvent & any)[]) {
    if (event.name === 'spte_changed') {
      for (let k = 0; k < event.count; k++) {
        const gfn = event.gfn + k * 512 ** (event.level - 1);
        const [was, is] = [event.old, event.new].map((one) => toSpte(toMeaning(one), gfn, event.level));
        changes.push([event.asId, gfn, event.level, was, is]);
      }
      pos += event.count;
    } else if (EVENT_FIELDS[event.name] !== undefined) {
      const fields = EVENT_FIELDS[event.name].map(([property, kind]) => {
        const value = BigInt(property === undefined ? 0 : event[property]);
        if (kind === 'hex') return value.toString(16);
        return value < 1n << 53n ? Number(value) : `0x${value.toString(16)}`;
      });
      events.push([pos, event.name, ...fields]);
    }
  }
  const { leafs, state, nonleaf, special, ...args } = operation.args as Record<string, unknown>;
  const counts = [0, 0, 0];
  for (const run of outcome.leafs()) counts[run.level - 1] += run.count;
  return JSON.stringify({
    ...args,
    ret: outcome.ret,
    errno: outcome.errno,
    exits: outcome.exits,
    left_gpa: outcome.leftGpa?.toString(16),
    left_size: outcome.leftSize?.toString(16),
    spte_changes: changes,
    other_events: events,
    stats: outcome.stats ?? {},
    ...(leafs === undefined ? {} : { leafs: counts, tables: outcome.tables(), h: canonicalCrc(outcome.leafs()) }),
  });
}

/** Replays a recording under failing allocations and writes down what happened. */
function record(name: string, failures: FailedHugePages): string {
  const source = readFile(join(FOLDER, `${name}.jsonl.gz`));
  if ('vectors' in source) throw new Error('no recording');
  const header = {
    scenario: `${name} with failing allocations`,
    format: 'gt1',
    maxphyaddr: source.maxphyaddr,
    kvm_params: { nx_huge_pages: 'N', eager_page_split: 'Y', mmio_caching: 'Y' },
    nops: source.nops,
  };
  const lines = [JSON.stringify(header)];
  const replay = new Replay(source, new HostInputs(true), engine, failures);
  for (const operation of source.operations) lines.push(toLine(operation, replay.perform(operation)));
  replay.close();
  const file = join(folder, `${name}.jsonl`);
  writeFileSync(file, `${lines.join('\n')}\n`);
  return file;
}

const REGION = 0x200000n;
const BASE = 0x100000000000n;
/** The operation of b01 that populates its host memory. */
const POPULATE = 4;

test('a recording that the test wrote itself agrees with its replay', () => {
  const inputs = new HostInputs(true);
  const result = conform([record('b01_thp_dontneed', new Map())], inputs, { engine });
  expect(result.details).toEqual([]);
  expect(inputs.counts.get('inferred')).toBeUndefined();
});

test.each([
  ['one region', new Map([[POPULATE, [BASE + REGION]]]), 1],
  ['two regions of one population', new Map([[POPULATE, [BASE, BASE + 2n * REGION]]]), 2],
])('failed huge pages are inferred and counted: %s', (_, failures, count) => {
  const file = record('b01_thp_dontneed', failures);
  const inputs = new HostInputs(true);
  const result = conform([file], inputs, { engine });
  expect(result.details).toEqual([]);
  expect(inputs.counts.get('inferred')).toBe(count);
  const strict = conform([file], new HostInputs(false), { engine });
  expect(strict.mismatches).toBeGreaterThan(0);
});
