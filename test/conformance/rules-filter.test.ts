// Rules of the filter: which of a TD's two trees a range means (R-FLT-*). Every cell of the producers' table is in
// filters.test.ts.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions } from '../../src/index.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { makeMappedVm, zappedBy } from '../support/mapped-td.ts';
import { counted, countersMoved, eventsOf, hvaOfSlot, leavesOf } from '../support/observe.ts';

const HVA = hvaOfSlot(0);
const ALL = { slot: 0, start: 0, end: 16 };
const SEAMCALLS = [
  'TDH.MEM.RANGE.BLOCK',
  'TDH.MEM.TRACK',
  'kicks',
  'TDH.MEM.PAGE.REMOVE',
  'TDH.PHYMEM.PAGE.WBINVD',
] as const;

describe('which trees a range means', () => {
  // arch/x86/kvm/mmu/tdp_mmu.h: kvm_gfn_range_filter_to_root_types()
  test.each<[string, Partial<CreateVmOptions>]>([
    ['rfc-v4', {}],
    ['attr-filter', { kernel: 'linux-6.16' }],
    ['gmem-v13', { filterForm: 'gmem-v13' }],
    ['tdx-v18', { filterForm: 'tdx-v18' }],
  ])('R-FLT-1 notifier unmap on a TD never touches mirror leafs (%s)', (_, options) => {
    const vm = makeMappedVm(options);
    // All of the slot's host memory, under the private gfns too.
    const moved = countersMoved(vm, () => {
      expect(zappedBy(vm, () => vm.host.munmap({ hva: HVA, length: 16 * PAGE }))).toBe('shared');
    });
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 8, gfns_zapped: 8 });
    for (const name of [...SEAMCALLS, 'leafs_zapped_mirror_4k']) expect(moved[name]).toBeUndefined();
    expect(eventsOf(vm, 'unmap_gfn_range')).toMatchObject([{ start: 0, end: 16 }]);
  });

  // arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_unmap_gfn_range()
  test.each<[string, 'private' | 'both', Partial<CreateVmOptions>]>([
    ['attr-filter (E)', 'private', { kernel: 'linux-6.16' }],
    ['rfc-v4 (B)', 'private', {}],
    ['tdx-v18 (C)', 'both', { filterForm: 'tdx-v18' }],
  ])('R-FLT-2 a guest_memfd punch on a TD under %s zaps %s', (_, zapped, options) => {
    const vm = makeMappedVm(options);
    expect(zappedBy(vm, () => vm.slotFiles[0]?.punchHole(0, 16 * PAGE))).toBe(zapped);
  });

  // arch/x86/kvm/mmu/tdp_mmu.h: kvm_gfn_range_filter_to_root_types()
  test.each(
    (['default', 'sw-protected', 'snp'] as const).flatMap((type) =>
      [0, 1, 2, 3].map((attrFilter) => [attrFilter, type] as const),
    ),
  )('R-FLT-3 filter %i on a %s VM selects the direct root', (attrFilter, type) => {
    const vm = makeMappedVm({ type, kernel: 'linux-6.16' });
    expect(zappedBy(vm, () => expect(vm.unmapGfnRange({ ...ALL, attrFilter })).toBe(true))).toBe('both');
  });

  // arch/x86/kvm/mmu/tdp_mmu.h: kvm_gfn_range_filter_to_root_types()
  test('R-FLT-4 on a TD filter 0 selects nothing', () => {
    const vm = makeMappedVm({ kernel: 'linux-6.16' });
    const names = ['entries_visited', 'gfns_zapped', ...SEAMCALLS] as const;
    const moved = counted(vm, names, () => {
      expect(zappedBy(vm, () => expect(vm.unmapGfnRange({ ...ALL, attrFilter: 0 })).toBe(false))).toBe('nothing');
      expect(vm.ageGfn({ ...ALL, attrFilter: 0 })).toBe(false);
    });
    expect(Object.values(moved)).toEqual(names.map(() => 0));
  });

  // The message of the RFC's patch (v4, 05/10); upstream: arch/x86/kvm/mmu/mmu.c, kvm_arch_pre_set_memory_attributes()
  test.each([
    ['private', 8, 'shared'],
    ['shared', 0, 'private'],
  ] as const)(
    'R-FLT-5 the RFC’s (F,F) with new=%s zaps only what the new value leaves behind',
    (_, attributes, zapped) => {
      const range = { ...ALL, arg: { attributes }, onlyPrivate: false, onlyShared: false };
      const vm = makeMappedVm();
      expect(zappedBy(vm, () => expect(vm.unmapGfnRange(range)).toBe(true))).toBe(zapped);
      const converted = makeMappedVm();
      const convert = () => converted.setMemoryAttributes({ address: 0, size: 16 * PAGE, attributes });
      expect(zappedBy(converted, convert)).toBe(zapped);
    },
  );

  // The message of the RFC's patch (v4, 05/10), and guest_memfd v13's reading of the same bools
  test('R-FLT-6 (T,T) means both under the RFC, (F,F) means both under gmem-v13: the form decides', () => {
    const tt = { ...ALL, onlyPrivate: true, onlyShared: true };
    const ff = { ...ALL, onlyPrivate: false, onlyShared: false, arg: { attributes: 8 } };
    const rfc = () => makeMappedVm();
    const v13 = () => makeMappedVm({ filterForm: 'gmem-v13' });
    const outcome = (make: typeof rfc, range: typeof tt) => {
      const vm = make();
      return zappedBy(vm, () => vm.unmapGfnRange(range));
    };
    expect(outcome(rfc, tt)).toBe('both');
    expect(outcome(rfc, ff)).toBe('shared');
    expect(outcome(v13, ff)).toBe('both');
    expect(() => outcome(v13, tt)).toThrow(expect.objectContaining({ code: 'EINVAL', call: 'unmapGfnRange' }));
  });

  // arch/x86/kvm/mmu/mmu.c: kvm_mmu_zap_memslot()
  test.each<[string, Partial<CreateVmOptions>]>([
    ['rfc-v4', {}],
    ['linux-6.12', { kernel: 'linux-6.12' }],
    ['linux-6.16', { kernel: 'linux-6.16' }],
  ])('R-FLT-7 slot delete on a TD removes both kinds for that slot only, tables remain (%s)', (_, options) => {
    const vm = makeVm({
      type: 'tdx',
      ...options,
      slots: [
        { startGfn: 0, npages: 16, guestMemfd: true },
        { startGfn: 16, npages: 16, guestMemfd: true },
      ],
      mapped: [0, 1, 2, 16, 17],
      mappedPrivate: [8, 9, 24, 25, 26],
    });
    const remove = () => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA });
    const names = ['leafs_zapped_direct_4k', 'leafs_zapped_mirror_4k', 'tables_freed'] as const;
    expect(counted(vm, names, remove)).toEqual({
      leafs_zapped_direct_4k: 3,
      leafs_zapped_mirror_4k: 2,
      tables_freed: 0,
    });
    expect(leavesOf(vm, 'direct')).toEqual(['16..17 4K']);
    expect(leavesOf(vm, 'mirror')).toEqual(['24..26 4K']);
  });
});
