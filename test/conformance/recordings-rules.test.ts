// Rules that no recording at hand decides, but that others of the same kinds may.

import { expect, test } from 'vitest';
import { createVmSync, type Vm } from '../../src/index.ts';

const PAGE = 4096;
const HVA = 0x100000000000;
const GPA = 0x10000000;

function makeVm(): Vm {
  return createVmSync({
    kernel: 'linux-6.12',
    memory: 1 << 30,
    maxphyaddr: 40,
    quirks: { slotZapAll: false },
    traceRecords: 4096,
    debug: process.env.EPTSIM_BUILD === 'debug',
  });
}

/** The slots that one notifier event over their common host range meets, in order. */
function slotsMet(vm: Vm): number[] {
  vm.trace();
  vm.host.madvise({ hva: HVA, length: 16 * PAGE, advice: 'DONTNEED' });
  return vm.trace().flatMap((event) => (event.name === 'unmap_gfn_range' ? [event.slot] : []));
}

// kvm_replace_memslot() takes the old slot out of the hva interval tree and inserts the new one, which goes right of its equals.
test('among memslots of one host address the one changed last is met last', () => {
  const vm = makeVm();
  vm.host.mmap({ kind: 'anon4k', hva: HVA, length: 16 * PAGE });
  const region = (slot: number, flags = 0, move = 0) => ({
    slot,
    flags,
    guestPhysAddr: GPA + slot * 0x1000000 + move,
    memorySize: 16 * PAGE,
    userspaceAddr: HVA,
  });
  for (const slot of [2, 0, 1]) vm.setUserMemoryRegion(region(slot));
  expect(slotsMet(vm)).toEqual([2, 0, 1]);
  vm.setUserMemoryRegion(region(2, 1));
  expect(slotsMet(vm)).toEqual([0, 1, 2]);
  vm.setUserMemoryRegion(region(0, 0, 0x100000));
  expect(slotsMet(vm)).toEqual([1, 2, 0]);
  // A move beyond the last gfn fails late: the slot was out and comes back.
  expect(() => vm.setUserMemoryRegion({ ...region(1), guestPhysAddr: 2 ** 40 })).toThrow(/EINVAL/);
  expect(slotsMet(vm)).toEqual([2, 0, 1]);
  // Nothing changes, nothing moves.
  vm.setUserMemoryRegion(region(2, 1));
  expect(slotsMet(vm)).toEqual([2, 0, 1]);
});

// KVM_PRE_FAULT_MEMORY retries its first page until a signal comes: the pages behind it are never asked for.
test('a pre-fault that would retry for ever brings only its first page in on the host', () => {
  const vm = makeVm();
  const vcpu = vm.vcpus[0];
  vm.host.mmap({ kind: 'anon4k', hva: HVA, length: 16 * PAGE });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: GPA, memorySize: 16 * PAGE, userspaceAddr: HVA });
  vcpu.run();
  vm.writeParameter('nx_huge_pages', true);
  expect(() => vcpu.preFaultMemory({ gpa: GPA, size: 16 * PAGE })).toThrow(/EINTR/);
  vm.trace();
  // Writing replaces the zero page, with an event of its own, where one was mapped.
  vm.host.madvise({ hva: HVA, length: 16 * PAGE, advice: 'POPULATE_WRITE' });
  const events = vm.trace().filter((event) => event.name === 'kvm_unmap_hva_range');
  expect(events).toHaveLength(1);
});

// kvm_mmu_hugepage_adjust() notes that an exec fault may have no huge page before it looks whether there is any memory at all.
test('the tables of an exec fault outside any memslot forbid huge pages, and count as no split', () => {
  const vm = makeVm();
  const vcpu = vm.vcpus[0];
  vm.writeParameter('nx_huge_pages', true);
  const inSecond2M = GPA + 0x200000;
  expect(vcpu.access({ gpa: inSecond2M + PAGE, kind: 'exec' }).reason).toBe('mmio');
  const length = 0x400000;
  vm.host.mmap({ kind: 'thp', hva: HVA, length });
  vm.host.madvise({ hva: HVA, length, advice: 'POPULATE_WRITE' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: GPA, memorySize: length, userspaceAddr: HVA });
  vcpu.preFaultMemory({ gpa: GPA, size: length });
  const leafs = [1, 2].map((level) => vm.leafs().filter((run) => run.level === level));
  expect(leafs.map((runs) => [runs[0].gfn * PAGE, runs.reduce((sum, run) => sum + run.count, 0)])).toEqual([
    [inSecond2M, 512],
    [GPA, 1],
  ]);
  expect(vm.stats().nx_lpage_splits).toBe(0);
});

// clear_dirty_pt_masked() walks from the first set bit to the end of the word, wherever the tables lie.
test('a word of the dirty log that reaches into a second table write-protects what lies there', () => {
  const vm = makeVm();
  const slot = { slot: 0, guestPhysAddr: GPA + 17 * PAGE, memorySize: 0x600000, userspaceAddr: HVA };
  vm.host.mmap({ kind: 'shmem', hva: HVA, length: 0x600000 });
  vm.host.madvise({ hva: HVA, length: 0x600000, advice: 'POPULATE_WRITE' });
  vm.setUserMemoryRegion({ ...slot, flags: 1 });
  // The pages before gfn 0x10200 stay unmapped, and so does their table; word 7 holds [0x101d1, 0x10211).
  vm.vcpus[0].preFaultMemory({ gpa: GPA + 0x200000, size: 64 * PAGE });
  expect(vm.getDirtyLog({ slot: 0 })).toEqual([{ first: 0x200 - 17, count: 64 }]);
  expect(vm.leafs().map(({ gfn, count, spte }) => [gfn * PAGE, count, spte.writable])).toEqual([
    [GPA + 0x200000, 64, false],
  ]);
});
