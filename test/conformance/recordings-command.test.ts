// What `eptsim conform` prints and how it ends.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, afterEach, describe, expect, test, vi } from 'vitest';
import { runConform } from '../../src/cli/conform/command.ts';

const FOLDER = join(import.meta.dirname, '../recorded');
const folder = mkdtempSync(join(tmpdir(), 'eptsim-conform-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
afterEach(() => vi.restoreAllMocks());

interface Run {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

function run(paths: string[], options: object = {}): Run {
  let out = '';
  let err = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    out += text;
    return true;
  });
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    err += text;
    return true;
  });
  const code = runConform(paths, { hostInputs: true, ...options });
  vi.restoreAllMocks();
  return { code, out, err };
}

const recorded = (name: string) => join(FOLDER, `${name}.jsonl.gz`);

/** A recording with one word of one line replaced. */
function edited(name: string, line: number, from: string, to: string): string {
  const lines = gunzipSync(readFileSync(recorded(name)))
    .toString()
    .split('\n');
  expect(lines[line]).toContain(from);
  lines[line] = lines[line].replace(from, to);
  const file = join(folder, `${name}.jsonl`);
  writeFileSync(file, lines.join('\n'));
  return file;
}

describe('eptsim conform', () => {
  test('ends with a line of totals and 0 if nothing differs', () => {
    const { code, out } = run([recorded('a01_anon4k_dontneed')]);
    expect(out).toBe('host inputs: none\nfiles 1  operations 47  changes 15382  mismatches 0\n');
    expect(code).toBe(0);
  });

  test('names file, operation, field, expected and actual, and ends with 1', () => {
    const file = edited('a01_anon4k_dontneed', 7, '120019e47', '120019e45');
    const { code, out } = run([file]);
    const lines = out.trimEnd().split('\n');
    expect(lines[0]).toBe(
      `${file}:6: spte_changes[0].old: expected as 0 gfn 65536 level 1: leaf X D host-W mmu-W -> non-present; actual as 0 gfn 65536 level 1: leaf W X D host-W mmu-W -> non-present`,
    );
    expect(lines.at(-1)).toBe('files 1  operations 47  changes 15382  mismatches 1');
    expect(code).toBe(1);
  });

  test('prints one JSON object and nothing else on standard output', () => {
    const file = edited('a01_anon4k_dontneed', 7, '"ret":0', '"ret":-1');
    const { code, out, err } = run([file], { json: true, explain: true });
    expect(JSON.parse(out)).toEqual({
      files: 1,
      operations: 47,
      changes: 15382,
      mismatches: 1,
      details: [{ file, i: 6, field: 'ret', expected: '-1', actual: '0' }],
    });
    expect(err).toContain('host inputs: none');
    expect(code).toBe(1);
  });

  test('stops at the first mismatch if asked', () => {
    const file = edited('a01_anon4k_dontneed', 7, '"ret":0', '"ret":-1');
    const { out } = run([file, recorded('a03_unaligned_slots')], { stopAtFirst: true });
    expect(out.trimEnd().split('\n').at(-1)).toBe('files 1  operations 7  changes 1542  mismatches 1');
  });

  test('explains with the walk, the slots, the attributes and the last operations', () => {
    const file = edited('c01_swp_convert_4k', 8, '"8000000000000000"', '"80000000000005a0"');
    const { out } = run([file], { explain: true });
    for (const part of [
      'walk of gfn 65536 (as 0):',
      'attributes: [',
      '  slots:',
      'as 0 id 0: gpa 10000000',
      '    7 set_attributes',
    ]) {
      expect(out).toContain(part);
    }
  });

  test('minimises a failing recording to the operations that matter', () => {
    const file = edited('a01_anon4k_dontneed', 7, '120019e47', '120019e45');
    const { out } = run([file], { minimise: true });
    expect(out).toContain(':6: 6 of 7 operations still differ:\n  0 create_vm type=0\n');
    expect(out).not.toContain('slot=31');
  });

  test('takes host inputs, names them by kind, and without them shows what they decide', () => {
    const file = recorded('b12_khugepaged');
    expect(run([file])).toMatchObject({ code: 0, out: expect.stringContaining('host inputs: khugepaged 2\n') });
    expect(run([file], { hostInputs: false })).toMatchObject({
      code: 1,
      out: expect.stringContaining('host inputs: none\n'),
    });
  });

  test('refuses a bad input with its place and ends with 2', () => {
    const file = edited('a01_anon4k_dontneed', 3, '"mmap"', '"nap"');
    expect(run([file])).toMatchObject({ code: 2, err: `${file}:4:13: unknown operation 'nap'\n` });
    expect(run([join(folder, 'none')])).toMatchObject({
      code: 2,
      err: expect.stringContaining('cannot be read (ENOENT)'),
    });
  });
});
