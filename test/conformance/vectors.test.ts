// The worked vectors: small cases with every number computed outside the simulator, from the rules alone.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, Vm } from '../../src/index.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { counted, countersMoved, hvaOfSlot, leafCounts, leavesOf } from '../support/observe.ts';

const PRIVATE = 8;
const M2 = 512;
const G1 = 262_144;

const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });
const bits = (values: boolean[]) => values.map(Number).join(',');

describe('13.1 conversions in a slot [0, 524288) of a VM with private memory', () => {
  interface Step {
    step: string;
    start: number;
    end: number;
    attributes: number;
    /** The hull with the guard of 6.12.117 and 6.16; null: a no-op. Without the guard it is the request. */
    hull: [number, number] | null;
    seq: number;
    /** Mixed 2M regions 0, 1, 511 and 512, then mixed 1G regions 0 and 1. */
    m2: string;
    m3: string;
  }
  const STEPS: Step[] = [
    { step: 'a', start: 100, end: 101, attributes: 8, hull: [0, 262_144], seq: 1, m2: '1,0,0,0', m3: '1,0' },
    { step: 'b', start: 512, end: 1024, attributes: 8, hull: [512, 1024], seq: 2, m2: '1,0,0,0', m3: '1,0' },
    { step: 'c', start: 0, end: 512, attributes: 8, hull: [0, 512], seq: 3, m2: '0,0,0,0', m3: '1,0' },
    { step: 'd', start: 0, end: 512, attributes: 8, hull: null, seq: 3, m2: '0,0,0,0', m3: '1,0' },
    { step: 'e', start: 0, end: 262_144, attributes: 8, hull: [0, 262_144], seq: 4, m2: '0,0,0,0', m3: '0,0' },
    { step: 'f', start: 262_000, end: 262_656, attributes: 0, hull: [0, 524_288], seq: 5, m2: '0,0,1,0', m3: '1,0' },
    {
      step: 'g',
      start: 262_000,
      end: 262_656,
      attributes: 8,
      hull: [262_000, 524_288],
      seq: 6,
      m2: '0,0,0,0',
      m3: '0,1',
    },
  ];
  const makeSlot = (hugepageGuard: boolean, options: Partial<CreateVmOptions> = {}) =>
    makeVm({
      type: 'sw-protected',
      hugepageGuard,
      ...options,
      slots: [{ startGfn: 0, npages: 2 * G1, guestMemfd: true, kind: null }],
    });

  test.each<[string, boolean]>([
    ['guard on', true],
    ['guard off, as in 6.8', false],
  ])('%s: hull, seq and mixed regions after each of the steps a to g', (_, guard) => {
    const vm = makeSlot(guard);
    for (const { step, start, end, attributes, hull, seq, m2, m3 } of STEPS) {
      const { invalidations } = counted(vm, ['invalidations'], () => set(vm, start, end, attributes));
      expect(invalidations, step).toBe(hull === null ? 0 : 1);
      if (hull !== null) {
        const [from, to] = guard ? hull : [start, end];
        expect([vm.invalidate.start, vm.invalidate.end], `${step}: hull`).toEqual([from, to]);
      }
      expect(vm.invalidate, step).toMatchObject({ inProgress: 0, seq });
      const regions2m = [0, 1, 511, 512].map((region) => vm.isMixed(0, 2, region * M2));
      const regions1g = [0, 1].map((region) => vm.isMixed(0, 3, region * G1));
      expect([bits(regions2m), bits(regions1g)], `${step}: mixed`).toEqual([m2, m3]);
    }
  });

  test('step c on a TD zaps only shared leafs although gfn 100 is private already', () => {
    const vm = makeVm({
      type: 'tdx',
      slots: [{ startGfn: 0, npages: 1024, guestMemfd: true }],
      mappedPrivate: [100],
      mapped: [0, 99, 101, 511, 512],
    });
    const moved = countersMoved(vm, () => set(vm, 0, 512, PRIVATE));
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 4, remote_tlb_flush_requests: 1 });
    expect(moved.leafs_zapped_mirror_4k).toBeUndefined();
    expect(leavesOf(vm, 'direct')).toEqual(['512..512 4K']);
    expect(leavesOf(vm, 'mirror')).toEqual(['100..100 4K']);
    expect(vm.losses().privatePagesLost).toBe(0);
  });
});

describe('13.2 a slot [100, 2148)', () => {
  test('[300, 700) private: region 0 is untracked, region 1 mixed, the hull is [300, 1024), no 1G is trackable', () => {
    const vm = makeVm({
      type: 'sw-protected',
      slots: [{ startGfn: 100, npages: 2048, guestMemfd: true, kind: null }],
    });
    set(vm, 300, 700, PRIVATE);
    expect(vm.invalidate).toEqual({ inProgress: 0, seq: 1, start: 300, end: 1024 });
    expect([0, 1, 2, 3, 4].map((region) => vm.isMixed(0, 2, region * M2))).toEqual([false, true, false, false, false]);
    expect(vm.isMixed(0, 3, 0)).toBe(false);
  });
});

test('13.3 epochs: E=5, two vCPUs inside; a blocked page is tracked once TRACK succeeded and both have left', () => {
  const vm = makeVm({
    type: 'tdx',
    vcpus: 2,
    slots: [{ startGfn: 0, npages: 16, guestMemfd: true }],
    mappedPrivate: [0, 1, 2],
  });
  const track = () => vm.tdx.seamcall('TDH.MEM.TRACK');
  const block = (gfn: number) => vm.tdx.seamcall('TDH.MEM.RANGE.BLOCK', { gpa: gfn * PAGE });
  /** Whether the page is tracked: REMOVE tells. */
  const remove = (gfn: number) => vm.tdx.seamcall('TDH.MEM.PAGE.REMOVE', { gpa: gfn * PAGE });
  for (let epoch = 1; epoch < 5; epoch++) expect(track()).toBe('TDX_SUCCESS');
  const [one, other] = vm.vcpus;
  one.setInGuest(true);
  other.setInGuest(true);
  expect([vm.tdx.epoch, block(0), block(1)]).toEqual([5, 'TDX_SUCCESS', 'TDX_SUCCESS']);
  expect(remove(0)).toBe('TDX_TLB_TRACKING_NOT_DONE');
  expect([track(), vm.tdx.epoch, remove(0)]).toEqual(['TDX_SUCCESS', 6, 'TDX_TLB_TRACKING_NOT_DONE']);
  expect(track()).toBe('TDX_PREVIOUS_TLB_EPOCH_BUSY');
  one.setInGuest(false);
  expect(remove(0)).toBe('TDX_TLB_TRACKING_NOT_DONE');
  other.setInGuest(false);
  expect(remove(0)).toBe('TDX_SUCCESS');
  // A vCPU that comes back at 6 drops its translations: the other page is still tracked.
  const flushes = counted(vm, ['td_tlb_flushes'], () => one.setInGuest(true));
  expect([flushes.td_tlb_flushes, remove(1)]).toEqual([1, 'TDX_SUCCESS']);
  expect([track(), vm.tdx.epoch]).toEqual(['TDX_SUCCESS', 7]);
});

describe('13.4 the index path of gpa 0x1234567000', () => {
  const GPA = 0x1234567000n;
  const GFN = 0x1234567;
  test.each<[48 | 52, number[], number[]]>([
    [48, [256, 72, 418, 359], [0, 72, 418, 359]],
    [52, [8, 0, 72, 418, 359], [0, 0, 72, 418, 359]],
  ])('GPAW %i: %j in the shared tree, %j in the mirror tree', (gpaw, shared, mirror) => {
    const vm = makeVm({
      type: 'tdx',
      gpaw,
      slots: [{ startGfn: GFN, npages: 16, guestMemfd: true }],
      mapped: [GFN],
    });
    const path = (walk: ReturnType<Vm['walk']>) => walk.map(({ index }) => index);
    const sharedBit = 1n << BigInt(gpaw - 1);
    const direct = vm.walk(GPA, { root: 'direct' });
    expect(path(direct)).toEqual(shared);
    expect(direct.map(({ level }) => level)).toEqual(shared.map((_, depth) => shared.length - depth));
    // The shared bit in the address means the same tree; the iterator's gfn has it not.
    expect(vm.walk(GPA | sharedBit)).toEqual(direct);
    expect(direct.at(-1)).toMatchObject({ level: 1, gfn: GFN, spte: { class: 'leaf' } });

    set(vm, GFN, GFN + 1, PRIVATE);
    vm.vcpus[0].accept({ gpa: GPA, size: PAGE });
    expect(path(vm.walk(GPA))).toEqual(mirror);
    expect(vm.walk(GPA)).toEqual(vm.walk(GPA, { root: 'mirror' }));
    expect(vm.walk(GPA).at(-1)).toMatchObject({ level: 1, gfn: GFN, spte: { class: 'leaf', private: true } });
  });
});

describe('13.5 over-zap: a notifier unmaps the hva of gfn 511 under a 2M leaf over [0, 512)', () => {
  const last = { hva: hvaOfSlot(0) + 511 * PAGE, length: PAGE };
  test.each<[string, (vm: Vm) => void, string]>([
    [
      'as the host still maps 2M, the next access refaults 2M',
      (vm) => {
        vm.host.invalidateRangeStart(last);
        vm.host.invalidateRangeEnd(last);
      },
      '0..511 2M',
    ],
    [
      'where the host split its huge page, the next access refaults 4K',
      (vm) => vm.host.madvise({ ...last, advice: 'DONTNEED' }),
      '3..3 4K',
    ],
  ])('%s', (_, unmap, refaulted) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 512, kind: 'thp' }], mapped: [0] });
    expect(leavesOf(vm)).toEqual(['0..511 2M']);
    const { tables } = vm.stats();
    const moved = countersMoved(vm, () => unmap(vm));
    expect(moved).toMatchObject({
      leafs_zapped_direct_2m: 1,
      gfns_zapped: 512,
      gfns_zapped_outside_request: 511,
      remote_tlb_flush_requests: 1,
    });
    expect(leafCounts(vm)).toEqual([0, 0, 0]);
    expect(vm.stats().tables).toBe(tables);
    vm.vcpus[0].access({ gpa: 3 * PAGE, kind: 'read' });
    expect(leavesOf(vm)).toEqual([refaulted]);
  });
});

describe('13.6 and 13.7: 2 MiB of a TD, fully mapped by 4K pages, to shared and back', () => {
  const SEAMCALLS = [
    'TDH.MEM.RANGE.BLOCK',
    'TDH.MEM.TRACK',
    'kicks',
    'TDH.MEM.PAGE.REMOVE',
    'TDH.PHYMEM.PAGE.WBINVD',
    'TDH.MEM.PAGE.AUG',
    'TDH.MEM.SEPT.ADD',
  ] as const;
  const NONE = Object.fromEntries(SEAMCALLS.map((name) => [name, 0]));
  const makeTd = () => {
    const vm = makeVm({ type: 'tdx', vcpus: 8, slots: [{ startGfn: 0, npages: 1024, guestMemfd: true }] });
    set(vm, 0, 1024, PRIVATE);
    vm.vcpus[0].accept({ gpa: 0, size: 512 * PAGE });
    for (const vcpu of vm.vcpus) vcpu.setInGuest(true);
    return vm;
  };

  test('13.6 to shared: 512 of each of BLOCK, TRACK, broadcast, REMOVE and WBINVD, one remote flush, seq +1, tables stay', () => {
    const vm = makeTd();
    const { seq } = vm.invalidate;
    const { tables } = vm.stats();
    const names = [
      ...SEAMCALLS,
      ...([
        'kick_ipis',
        'pages_cleared',
        'remote_tlb_flush_requests',
        'remote_tlb_flush',
        'private_pages_lost',
      ] as const),
    ] as const;
    expect(counted(vm, names, () => set(vm, 0, 512, 0))).toEqual({
      'TDH.MEM.RANGE.BLOCK': 512,
      'TDH.MEM.TRACK': 512,
      kicks: 512,
      'TDH.MEM.PAGE.REMOVE': 512,
      'TDH.PHYMEM.PAGE.WBINVD': 512,
      'TDH.MEM.PAGE.AUG': 0,
      'TDH.MEM.SEPT.ADD': 0,
      // All eight are inside each time.
      kick_ipis: 4096,
      pages_cleared: 512,
      remote_tlb_flush_requests: 1,
      remote_tlb_flush: 1,
      private_pages_lost: 512,
    });
    expect(vm.invalidate.seq).toBe(seq + 1);
    expect(vm.stats().tables).toBe(tables);
    expect(leafCounts(vm)).toEqual([0, 0, 0]);
  });

  test('13.6 the same call repeated is a no-op: zero of everything', () => {
    const vm = makeTd();
    set(vm, 0, 512, 0);
    const { seq } = vm.invalidate;
    expect(countersMoved(vm, () => set(vm, 0, 512, 0))).toEqual({});
    expect(vm.invalidate.seq).toBe(seq);
  });

  test('13.7 to private afterwards: no SEAMCALL at the ioctl; on touch 512 AUG and 512 ACCEPT, no SEPT.ADD', () => {
    const vm = makeTd();
    set(vm, 0, 512, 0);
    expect(counted(vm, SEAMCALLS, () => set(vm, 0, 512, PRIVATE))).toEqual(NONE);
    const touched = counted(vm, [...SEAMCALLS, 'pages_accepted'], () =>
      vm.vcpus[0].accept({ gpa: 0, size: 512 * PAGE }),
    );
    expect(touched).toEqual({ ...NONE, 'TDH.MEM.PAGE.AUG': 512, pages_accepted: 512 });
    expect(leavesOf(vm, 'mirror')).toEqual(['0..511 4K']);
  });
});

describe('13.8 a default VM with 1 GiB mapped by 2M leaves deletes a slot of one page', () => {
  const makeGib = (slotZapAll: boolean) => {
    const vm = makeVm({
      quirks: { slotZapAll },
      slots: [
        { startGfn: 0, npages: G1, kind: 'thp' },
        { startGfn: 2 * G1, npages: 1 },
      ],
    });
    vm.host.access({ hva: hvaOfSlot(0), length: G1 * PAGE, write: true, step: M2 * PAGE });
    vm.vcpus[0].preFaultMemory({ gpa: 0, size: G1 * PAGE });
    vm.vcpus[0].access({ gpa: 2 * G1 * PAGE, kind: 'write' });
    expect(leafCounts(vm)).toEqual([1, 512, 0]);
    return vm;
  };
  const remove = (vm: Vm) =>
    vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0, memorySize: 0, userspaceAddr: hvaOfSlot(1) });

  test('quirk on: all leafs and all tables below the root are freed, no flush, one kick-all; everything refaults', () => {
    const vm = makeGib(true);
    const { tables } = vm.stats();
    const moved = countersMoved(vm, () => remove(vm));
    expect(moved).toMatchObject({
      leafs_zapped_direct_2m: 512,
      leafs_zapped_direct_4k: 1,
      tables_freed: tables,
      kvm_request_free_obsolete_roots: 1,
    });
    expect(moved.remote_tlb_flush_requests).toBeUndefined();
    expect(vm.stats().tables).toBe(0);
    expect(leafCounts(vm)).toEqual([0, 0, 0]);
    const touched = countersMoved(vm, () =>
      vm.vcpus[0].access({ gpa: 0, kind: 'read', count: 512, stride: M2 * PAGE }),
    );
    expect(touched).toMatchObject({ pf_taken: 512, pf_fixed: 512, pages_2m: 512 });
  });

  test('quirk off: one leaf and one flush, the tables are kept, nothing refaults', () => {
    const vm = makeGib(false);
    const { tables } = vm.stats();
    const moved = countersMoved(vm, () => remove(vm));
    expect(moved).toMatchObject({ leafs_zapped_direct_4k: 1, gfns_zapped: 1, remote_tlb_flush_requests: 1 });
    expect(moved.kvm_request_free_obsolete_roots).toBeUndefined();
    expect(vm.stats().tables).toBe(tables);
    expect(leafCounts(vm)).toEqual([0, 512, 0]);
    const touched = countersMoved(vm, () =>
      vm.vcpus[0].access({ gpa: 0, kind: 'read', count: 512, stride: M2 * PAGE }),
    );
    expect(touched.pf_taken).toBeUndefined();
  });
});
