// The worked examples of the specification, on the reference model alone.

import { describe, expect, test } from 'vitest';
import type { ModelOptions } from './kernel.ts';
import { bindingPieces } from './memslot.ts';
import { ModelVm } from './model-vm.ts';

const PAGE = 4096;
const HVA = 0x100000000000;

function makeModel(options: ModelOptions & { base?: number; npages?: number; kind?: 'anon4k' | 'thp' } = {}): ModelVm {
  const vm = new ModelVm({ maxphyaddr: 40, ...options });
  const base = options.base ?? 0;
  const npages = options.npages ?? 2048;
  vm.host.mmap({ kind: options.kind ?? 'anon4k', hva: HVA, length: npages * PAGE });
  const region = { slot: 0, guestPhysAddr: base * PAGE, memorySize: npages * PAGE, userspaceAddr: HVA };
  if (vm.hasPrivateMem) {
    const gmem = vm.createGuestMemfd({ size: npages * PAGE });
    vm.setUserMemoryRegion2({ ...region, flags: 4, guestMemfd: gmem.fd });
  } else vm.setUserMemoryRegion(region);
  vm.vcpus[0]?.run();
  vm.trace();
  return vm;
}
const convert = (vm: ModelVm, start: number, end: number, attributes: number): void =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
function hullOf(vm: ModelVm): string {
  const adds = vm.trace().filter((event) => event.name === 'inv_add');
  if (adds.length === 0) return 'none';
  const start = Math.min(...adds.map((event) => event.start as number));
  return `[${start},${Math.max(...adds.map((event) => event.end as number))})`;
}

describe('worked examples', () => {
  test('mixed tracking and published hulls over two 1G regions', () => {
    const vm = makeModel({ type: 'sw-protected', npages: 524288 });
    const rows: [number, number, number, string, number, string, string][] = [
      [100, 101, 8, '[0,262144)', 1, '1000', '10'],
      [512, 1024, 8, '[512,1024)', 2, '1000', '10'],
      [0, 512, 8, '[0,512)', 3, '0000', '10'],
      [0, 512, 8, 'none', 3, '0000', '10'],
      [0, 262144, 8, '[0,262144)', 4, '0000', '00'],
      [262000, 262656, 0, '[0,524288)', 5, '0010', '10'],
      [262000, 262656, 8, '[262000,524288)', 6, '0000', '01'],
    ];
    for (const [start, end, attributes, hull, seq, mixed2m, mixed1g] of rows) {
      vm.trace();
      convert(vm, start, end, attributes);
      const bits = (level: 2 | 3, gfns: number[]): string =>
        gfns.map((gfn) => (vm.isMixed(0, level, gfn) ? 1 : 0)).join('');
      expect([hullOf(vm), vm.invalidate.seq]).toEqual([hull, seq]);
      expect(bits(2, [0, 512, 511 * 512, 512 * 512])).toBe(mixed2m);
      expect(bits(3, [0, 262144])).toBe(mixed1g);
    }
  });

  test('regions that are not inside the slot are not tracked', () => {
    const vm = makeModel({ type: 'sw-protected', base: 100, npages: 2048 });
    vm.trace();
    convert(vm, 300, 700, 8);
    expect(hullOf(vm)).toBe('[300,1024)');
    expect([vm.isMixed(0, 2, 0), vm.isMixed(0, 2, 512), vm.isMixed(0, 3, 0)]).toEqual([false, true, false]);
  });

  test('zapping one gfn under a 2M leaf zaps 512 and frees no table', () => {
    const vm = makeModel({ kind: 'thp', npages: 2048 });
    vm.vcpus[0]?.access({ gpa: 0, kind: 'write' });
    const tables = vm.stats().tables;
    expect(vm.unmapGfnRange({ slot: 0, start: 511, end: 512 })).toBe(true);
    const stats = vm.stats();
    expect([stats.gfns_zapped_outside_request, stats.leafs_zapped_direct_2m, stats.tables]).toEqual([511, 1, tables]);
    expect(vm.unmapGfnRange({ slot: 0, start: 511, end: 512 })).toBe(false);
  });

  test('a TD conversion to shared costs one of each SEAMCALL a page, to private none', () => {
    const vm = makeModel({ type: 'tdx', npages: 512 });
    convert(vm, 0, 512, 8);
    expect(vm.vcpus[0]?.accept({ gpa: 0, size: 512 * PAGE })).toBe(512);
    convert(vm, 0, 512, 0);
    const stats = vm.stats();
    for (const name of ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'kicks', 'TDH.MEM.PAGE.REMOVE', 'private_pages_lost']) {
      expect([name, stats[name]]).toEqual([name, 512]);
    }
    convert(vm, 0, 512, 8);
    expect(vm.vcpus[0]?.accept({ gpa: 0, size: 512 * PAGE })).toBe(512);
    expect(vm.stats()['TDH.MEM.PAGE.AUG']).toBe(1024);
    expect(vm.stats()['TDH.MEM.SEPT.ADD']).toBe(stats['TDH.MEM.SEPT.ADD']);
  });

  test('deleting any slot of a default VM frees everything with the quirk, only its own leafs without', () => {
    for (const slotZapAll of [true, false]) {
      const vm = makeModel({ kind: 'thp', npages: 2048, quirks: { slotZapAll } });
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 2 ** 30, memorySize: PAGE, userspaceAddr: HVA });
      for (const gpa of [0, 2 ** 21, 2 ** 30]) vm.vcpus[0]?.access({ gpa, kind: 'write' });
      const before = vm.stats();
      vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 });
      const after = vm.stats();
      const flushes = after.remote_tlb_flush_requests ?? 0;
      expect(flushes - (before.remote_tlb_flush_requests ?? 0)).toBe(slotZapAll ? 0 : 1);
      expect([after.pages_2m, after.pages_4k]).toEqual(slotZapAll ? [0, 0] : [2, 0]);
      expect(after.tables).toBe(slotZapAll ? 0 : before.tables);
    }
  });

  test('a TD keeps its shared leafs in the upper half of the root', () => {
    for (const [gpaw, path] of [
      [48, [256, 72, 418, 359]],
      [52, [8, 0, 72, 418, 359]],
    ] as const) {
      const vm = new ModelVm({ type: 'tdx', gpaw });
      vm.vcpus[0]?.run();
      const gfn = 0x1234567000 / PAGE;
      for (const root of vm.roots) {
        const wanted = root.kind === 'direct' ? [...path] : [0, ...path.slice(1)];
        expect(wanted.map((_, i) => root.index(gfn, root.level - i))).toEqual(wanted);
      }
    }
  });

  test('a binding is stored in the pieces of an xarray', () => {
    expect(bindingPieces(0, 64)).toEqual([[0, 64]]);
    expect(bindingPieces(0, 65)).toEqual([
      [0, 64],
      [64, 65],
    ]);
    expect(bindingPieces(10, 100).flat()).toEqual([10, 64, 64, 110]);
  });
});
