// GiBs of which whole leaf tables were zapped (CHUNKS in the memory map): what they cost, what ends them, and that what a
// GiB takes comes back. test/property/chunks.test.ts holds what they mean to an array of pages.

import { describe, expect, test } from 'vitest';
import { createVmSync, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE } from '../support/make-vm.ts';
import { counted } from '../support/observe.ts';

const GIB_PAGES = 2 ** 18;
const GIB = GIB_PAGES * PAGE;
const HVA = 2 ** 40;
const ALL = { guestPhysAddr: 0, userspaceAddr: HVA };

function vmOf(kind: 'shmem' | 'hugetlb1g', kernel: 'linux-6.12' | 'linux-6.16' = 'linux-6.12'): Vm {
  const vm = createVmSync({ memory: GIB, kernel, debug: isDebugBuild });
  vm.host.mmap({ hva: HVA, length: GIB, kind });
  vm.setUserMemoryRegion({ slot: 0, memorySize: GIB, ...ALL });
  return vm;
}
function touchAll(vm: Vm): void {
  vm.vcpus[0].preFaultMemory({ gpa: 0, size: GIB });
  vm.vcpus[0].access({ gpa: 0, size: GIB, kind: 'write' });
}
const zap = (vm: Vm, table: number) => vm.unmapGfnRange({ slot: 0, start: table * 512, end: table * 512 + 512 });

describe('what they cost', () => {
  test('zapping every other 2 MiB of a GiB takes 64 bytes, not a table of 8 KiB', () => {
    const vm = vmOf('shmem');
    touchAll(vm);
    const before = vm.memoryUsed;
    for (let table = 0; table < 512; table += 2) zap(vm, table);
    expect(vm.stat('pages_4k')).toBe(GIB_PAGES / 2);
    // Blocks of 64 bytes are cut from one of 256.
    expect(vm.memoryUsed - before).toBeLessThanOrEqual(256 + 3 * 4);
  });

  test('a guest zapped, mapped and deleted over and over takes no more memory than the first time', () => {
    const vm = vmOf('shmem');
    const once = () => {
      vm.setUserMemoryRegion({ slot: 0, memorySize: GIB, ...ALL });
      // A pre-fault would retry for ever over the root that the deletion made obsolete.
      vm.vcpus[0].access({ gpa: 0, kind: 'write' });
      touchAll(vm);
      for (let table = 0; table < 512; table += 3) zap(vm, table);
      vm.setUserMemoryRegion({ slot: 0, memorySize: 0, ...ALL });
    };
    vm.setUserMemoryRegion({ slot: 0, memorySize: 0, ...ALL });
    once();
    const after = vm.memoryUsed;
    for (let round = 0; round < 200; round++) once();
    expect(vm.memoryUsed).toBe(after);
  });

  test('a GiB whose last table is zapped keeps its tables, empty', () => {
    const vm = vmOf('shmem');
    touchAll(vm);
    const tables = vm.stat('tables_allocated') - vm.stat('tables_freed');
    for (let table = 0; table < 512; table++) zap(vm, table);
    expect(vm.leafs()).toEqual([]);
    expect(vm.stat('tables_allocated') - vm.stat('tables_freed')).toBe(tables);
    // A walk still passes all of them.
    const visits = counted(vm, ['entries_visited_l1'], () => vm.unmapGfnRange({ slot: 0, start: 0, end: GIB_PAGES }));
    expect(visits).toEqual({ entries_visited_l1: GIB_PAGES });
  });
});

describe('what ends them', () => {
  /** A GiB that logging split to 4K leaves, of which tables 3 and 4 are zapped; then logging ends. */
  function splitAndZapped(kernel: 'linux-6.12' | 'linux-6.16'): Vm {
    const vm = vmOf('hugetlb1g', kernel);
    vm.vcpus[0].access({ gpa: 0, kind: 'write' });
    expect(vm.stat('pages_1g')).toBe(1);
    vm.setUserMemoryRegion({ slot: 0, memorySize: GIB, flags: 1, ...ALL });
    expect(vm.stat('pages_4k')).toBe(GIB_PAGES);
    zap(vm, 3);
    zap(vm, 4);
    return vm;
  }
  const endLog = (vm: Vm) => () => vm.setUserMemoryRegion({ slot: 0, memorySize: GIB, flags: 0, ...ALL });
  const NAMES = ['leafs_zapped_direct_4k', 'tables_freed'] as const;

  test('6.12 zaps the table in which a 1G leaf could stand: what was left of 512 leaf tables, and 513 tables', () => {
    const vm = splitAndZapped('linux-6.12');
    expect(counted(vm, NAMES, endLog(vm))).toEqual({
      leafs_zapped_direct_4k: GIB_PAGES - 1024,
      tables_freed: 513,
    });
    expect(vm.leafs()).toEqual([]);
  });

  test('6.16 puts the 1G leaf back', () => {
    const vm = splitAndZapped('linux-6.16');
    expect(counted(vm, NAMES, endLog(vm))).toEqual({
      leafs_zapped_direct_4k: GIB_PAGES - 1024,
      tables_freed: 513,
    });
    expect(vm.leafs().map(({ level, gfn, count }) => [level, gfn, count])).toEqual([[3, 0, 1]]);
  });

  test('a fault gives the GiB its table, and maps its page alone', () => {
    const vm = vmOf('shmem');
    touchAll(vm);
    zap(vm, 3);
    vm.vcpus[0].access({ gpa: (3 * 512 + 7) * PAGE, kind: 'write' });
    expect(vm.leafs().map(({ gfn, count }) => [gfn, count])).toEqual([
      [0, 1536],
      [1543, 1],
      [2048, GIB_PAGES - 2048],
    ]);
  });
});

describe('asked for in the same call', () => {
  test('a range inside a table, then the ranges around it by whole tables', () => {
    const vm = vmOf('shmem');
    touchAll(vm);
    // The second is not aligned: it gives the GiB, which the first and third find as one entry, its table.
    const starts = Float64Array.of(512, 2048 + 100, 1024, 2048);
    const { leafs, sptes } = vm.unmapGfnRanges({ slot: 0, starts, npages: 512, look: starts });
    expect([...leafs]).toEqual([512, 512, 512, 100]);
    expect([...sptes]).toEqual([65536, 65536, 65536, 65536]);
    expect(vm.leafs().map(({ gfn, count }) => [gfn, count])).toEqual([
      [0, 512],
      [1536, 512],
      [2660, GIB_PAGES - 2660],
    ]);
  });
});
