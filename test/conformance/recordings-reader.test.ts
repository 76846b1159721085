// A recording that is truncated, malformed or enormous is refused with file, line and column: no crash, no hang, no silent loss.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, describe, expect, test } from 'vitest';
import { InputError, listRecordings, READ_LIMITS, readFile } from '../../src/cli/conform/reader.ts';
import { ChangeRuns, type FieldKind, plainEvents } from '../../src/cli/conform/unfold.ts';

const folder = mkdtempSync(join(tmpdir(), 'eptsim-reader-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const HEADER = {
  scenario: 'made',
  format: 'gt1',
  maxphyaddr: 40,
  kvm_params: { nx_huge_pages: 'N', eager_page_split: 'Y', mmio_caching: 'Y' },
  nops: 1,
};
const OPERATION = {
  i: 0,
  op: 'pre_fault_memory',
  gpa: '10000000',
  size: '1000',
  flags: 0,
  ret: 0,
  spte_changes: [[0, 65536, 1, '8000000000000000', '120019e47', 2, 1, 0, 4096]] as unknown[],
  other_events: [[2, 'flush']] as unknown[],
};

function write(name: string, content: string | Buffer): string {
  const file = join(folder, name);
  writeFileSync(file, content);
  return file;
}

function recording(operation: object, header: object = HEADER): string {
  return `${JSON.stringify(header)}\n${JSON.stringify(operation)}\n`;
}

/** The position and message a content is refused with. */
function refusal(content: string | Buffer, name = 'one.jsonl', limits = READ_LIMITS): string {
  try {
    readFile(write(name, content), limits);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return error.message.slice(error.message.indexOf(name) + name.length + 1);
  }
  return 'accepted';
}

const withChange = (...change: unknown[]) => recording({ ...OPERATION, spte_changes: [change] });
const withEvent = (...event: unknown[]) => recording({ ...OPERATION, other_events: [event] });

describe('a recording', () => {
  test('that is sound is accepted, compressed or not, with or without its last line end', () => {
    const sound = recording(OPERATION);
    expect(refusal(sound)).toBe('accepted');
    expect(refusal(sound.trimEnd())).toBe('accepted');
    expect(refusal(gzipSync(sound), 'one.jsonl.gz')).toBe('accepted');
  });

  test('may carry keys that nobody knows', () => {
    expect(refusal(recording({ ...OPERATION, novelty: [1, { a: 2 }] }))).toBe('accepted');
  });

  const cases: [what: string, content: string | Buffer, refused: RegExp][] = [
    ['empty', '', /^1:1: is empty/],
    ['text', 'hello\n', /^1:1: not JSON/],
    ['of another format', '{"format":"gt2"}\n', /^1:11: no recording/],
    ['cut inside the header', '{"scenario":"a","form', /^1:22: the line ends inside a value/],
    ['cut inside an operation', recording(OPERATION).slice(0, -30), /^2:\d+: the line ends inside a value/],
    ['cut between operations', recording(OPERATION, { ...HEADER, nops: 3 }), /^2:\d+: truncated: 1 of the 3/],
    ['longer than its header says', recording(OPERATION, { ...HEADER, nops: 0 }), /^2:1: more than the 0 operations/],
    ['with an empty line', `${JSON.stringify(HEADER)}\n\n`, /^2:1: /],
    ['with a wrong index', recording({ ...OPERATION, i: 5 }), /^2:6: expected operation 0/],
    ['with an unknown operation', recording({ ...OPERATION, op: 'fly' }), /^2:13: unknown operation 'fly'/],
    ['with an inherited name for an operation', recording({ ...OPERATION, op: 'toString' }), /^2:13: unknown/],
    [
      'without an argument',
      recording({ ...OPERATION, gpa: undefined }),
      /^2:1: pre_fault_memory lacks its argument 'gpa'/,
    ],
    ['with a wrong argument', recording({ ...OPERATION, gpa: 'xyz' }), /^2:38: expected a string of 1 to 16 hex/],
    [
      'with a number that a double cannot hold',
      recording(OPERATION).replace('"ret":0', '"ret":9007199254740993'),
      /^2:\d+: expected an integer/,
    ],
    ['with NaN', recording(OPERATION).replace('"ret":0', '"ret":NaN'), /^2:\d+: not JSON/],
    ['without changes', recording({ ...OPERATION, spte_changes: undefined }), /^2:1: lacks 'spte_changes'/],
    ['with a change of four values', withChange(0, 1, 1, '0'), /^2:\d+: expected 5 or 9 values/],
    ['with a level of 6', withChange(0, 1, 6, '0', '0'), /^2:\d+: expected an integer of 1 to 5/],
    ['with an absurd run', withChange(0, 0, 1, '0', '0', 2 ** 50, 1, 0, 0), /^2:\d+: more than 16777216 SPTE changes/],
    [
      'with a run out of the address space',
      withChange(0, 2 ** 51, 1, '0', '0', 9, 2 ** 51, 0, 0),
      /^2:\d+: the run leaves/,
    ],
    ['with a negative run', withChange(0, 5, 1, '0', '0', 9, -1, 0, 0), /^2:\d+: the run leaves/],
    [
      'with an absurd repetition',
      withEvent(0, 'rep', 2 ** 40, [[0, 'flush']], [[0, 0]]),
      /^2:\d+: more than 4194304 events/,
    ],
    [
      'with a repetition in a repetition',
      withEvent(0, 'rep', 2, [[0, 'rep', 2, [], []]], [[0, 0]]),
      /^2:\d+: a repetition inside/,
    ],
    [
      'with steps that do not fit',
      withEvent(0, 'rep', 2, [[0, 'req', 768]], [[0, 0]]),
      /^2:\d+: expected one step for each/,
    ],
    ['nested without end', '['.repeat(100_000), /^1:\d+: not JSON/],
    ['that is no object', `${JSON.stringify(HEADER)}\n[]\n`, /^2:1: expected an object/],
    [
      'with an unknown module parameter',
      recording(OPERATION, { ...HEADER, kvm_params: { nx_huge_pages: '?' } }),
      /^1:\d+: unknown value/,
    ],
  ];
  test.each(cases)('%s is refused at its place', (_, content, refused) => {
    expect(refusal(content)).toMatch(refused);
  });

  test('that is no gzip, or a cut one, is refused', () => {
    expect(refusal('plain', 'two.jsonl.gz')).toMatch(/^1:1: cannot be decompressed/);
    expect(refusal(gzipSync(recording(OPERATION)).subarray(0, 60), 'two.jsonl.gz')).toMatch(
      /^1:1: cannot be decompressed/,
    );
  });

  test('beyond a limit is refused before it fills memory', () => {
    const small = { ...READ_LIMITS, fileBytes: 1000, lineLength: 500 };
    expect(refusal('x'.repeat(2000), 'three.jsonl', small)).toMatch(/^1:1: larger than 1000 bytes/);
    expect(refusal('x'.repeat(900), 'three.jsonl', small)).toMatch(/^1:501: line longer than 500/);
    expect(refusal(gzipSync('x'.repeat(5_000_000)), 'three.jsonl.gz', small)).toMatch(/^1:1: larger than 1000 bytes/);
  });

  test('that does not exist, or a folder without any, is refused', () => {
    expect(() => listRecordings([join(folder, 'none.jsonl')])).toThrow(/none\.jsonl:1:1: cannot be read \(ENOENT\)/);
    const empty = mkdtempSync(join(folder, 'empty-'));
    expect(() => listRecordings([empty])).toThrow(/holds no \.jsonl file/);
  });
});

describe('unfolding', () => {
  test('wraps at 64 bits, and stays lazy', () => {
    const kinds = new Map<string, readonly FieldKind[]>([['kvm_age_hva', ['hex', 'hex']]]);
    const events = [
      ...plainEvents(
        [[3, 'rep', 3, [[3, 'kvm_age_hva', 'fffffffffffff000', 'ffffffffffffffff']], [[1, 0, 4096, 1]]]],
        kinds,
      ),
    ];
    expect(events.map((event) => event.pos)).toEqual([3, 4, 5]);
    expect(events.map((event) => event.fields)).toEqual([
      [0xfffffffffffff000n, 0xffffffffffffffffn],
      [0, 0],
      [4096, 1],
    ]);
    const first = plainEvents([[0, 'rep', 2 ** 40, [[0, 'kvm_age_hva', '0', '1000']], [[0, 0, 0, 0]]]], kinds).next();
    expect(first.value?.fields).toEqual([0, 4096]);
  });

  test('keeps a run whole as long as its meaning is one', () => {
    const runs = new ChangeRuns([[0, 0, 1, '120000e47', '8000000000000000', 2 ** 40, 1, -4096, '0x0']]);
    expect(runs.next()).toBe(true);
    expect(runs.count).toBe(1);
    const inside = new ChangeRuns([[0, 0, 1, '8000000000000000', '120000e47', 4096, 1, 0, 4096]]);
    expect([inside.next(), inside.count, inside.next()]).toEqual([true, 4096, false]);
  });
});
