// Replays recordings of real KVM through the public API: every operation's answer, every SPTE change in order, the events
// between them and the state after them must be what the kernel's were.

import { basename, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { conform } from '../../src/cli/conform/conform.ts';
import { HostInputs } from '../../src/cli/conform/host-inputs.ts';
import { listRecordings } from '../../src/cli/conform/reader.ts';

const FOLDER = join(import.meta.dirname, '../recorded');

const engine = { debug: process.env.EPTSIM_BUILD === 'debug' };
const files = listRecordings([FOLDER]);

describe('the simulator equals the recorded KVM', () => {
  test.each(files.map((file) => [basename(file, '.jsonl.gz'), file]))('%s', (_, file) => {
    const result = conform([file], new HostInputs(true), { engine });
    expect(result.details.slice(0, 5)).toEqual([]);
    expect(result.mismatches).toBe(0);
    expect(result.operations).toBeGreaterThan(0);
  });
});
