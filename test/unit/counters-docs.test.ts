// docs/counters.md has a line for each counter and each loss, and says which of them are KVM's own.

import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { COMPARED_STATS } from '../../src/cli/conform/compare.ts';
import { COUNTER_NAMES } from '../../src/engine/exports.ts';
import { createVmSync } from '../../src/index.ts';

const text = readFileSync('docs/counters.md', 'utf8');
const [counters, losses] = text.split('\n## Losses\n');
const rows = [...counters.matchAll(/^\| `([^`]+)` \| .* \| (.*) \|$/gm)].map(([, name, source]) => ({ name, source }));
const vm = createVmSync({ memory: 4096, debug: process.env.EPTSIM_BUILD === 'debug' });

test('every counter of vm.stats() has one line', () => {
  const names = rows.map(({ name }) => name);
  expect([...names].sort()).toEqual([...COUNTER_NAMES, 'entries_visited'].sort());
  expect([...names].sort()).toEqual(Object.keys(vm.stats()).sort());
});

test("those marked as KVM's are the statistics that conform compares", () => {
  const own = rows.flatMap(({ name, source }) => {
    const file = /^KVM \((vm|vcpu)\)$/.exec(source)?.[1];
    return file === undefined ? [] : [`${file}.${name}`];
  });
  expect([...own].sort()).toEqual([...COMPARED_STATS].sort());
});

test('every key of vm.losses() has one line', () => {
  const keys = [...losses.matchAll(/^\| `(\w+)` \| /gm)].map(([, key]) => key);
  expect(keys).toEqual(Object.keys(vm.losses()));
});
