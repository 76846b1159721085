// The side records of assembly/side.ts: MMIO sptes have a limit of their own.

import { expect, test } from 'vitest';
import { createVmSync } from '../../src/index.ts';

const SIDE_RECORDS_MAX = 12_288;

test('one MMIO spte more than fit is refused and changes nothing', () => {
  const vm = createVmSync({ memory: 4096, debug: process.env.EPTSIM_BUILD === 'debug' });
  const [vcpu] = vm.vcpus;
  for (let gfn = 0; gfn < SIDE_RECORDS_MAX; gfn++) vcpu.access({ gpa: gfn * 4096, kind: 'read' });
  expect(vm.stats().pf_mmio_spte_created).toBe(SIDE_RECORDS_MAX);
  const before = vm.stats();
  expect(() => vcpu.access({ gpa: SIDE_RECORDS_MAX * 4096, kind: 'read' })).toThrow(/ENOMEM/);
  expect(vm.stats()).toEqual(before);
  expect(vm.walk(0).at(-1)?.spte.class).toBe('mmio');
});
