// The `memory` of createVm() is the capacity of all memslots together.

import { expect, test } from 'vitest';
import { createVmSync } from '../../src/index.ts';

const PAGE = 4096;

test('a slot beyond the capacity is refused with ENOMEM, names the limit and changes nothing', () => {
  const vm = createVmSync({ memory: 16 * PAGE, debug: process.env.EPTSIM_BUILD === 'debug' });
  const region = (slot: number, page: number, pages: number) => ({
    slot,
    guestPhysAddr: page * PAGE,
    memorySize: pages * PAGE,
    userspaceAddr: 0x7f0000000000,
  });
  vm.setUserMemoryRegion(region(0, 0, 10));
  const before = vm.snapshot();
  expect(() => vm.setUserMemoryRegion(region(1, 100, 7))).toThrow(/ENOMEM: all slots together may hold 0x10000 bytes/);
  expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
  // A deleted slot gives its part back.
  vm.setUserMemoryRegion(region(1, 100, 6));
  vm.setUserMemoryRegion(region(0, 0, 0));
  vm.setUserMemoryRegion(region(2, 200, 10));
});
