// A plain access, with a fault or without one, is carried through at once where no trace watches. What is out of the
// ordinary takes the long way there too: each case ends as it does step by step, with a trace, one page after the other.

import { expect, test } from 'vitest';
import type { Vm } from '../../src/index.ts';
import { makeVm, PAGE, SLOT_HVA, type TestVm, type VmSpec } from '../support/make-vm.ts';
import { leavesOf } from '../support/observe.ts';

const M2 = 512 * PAGE;
const SIZE = 2 * M2;
const slot0 = { slot: 0, guestPhysAddr: 0, memorySize: SIZE, userspaceAddr: SLOT_HVA };

/** Accesses to `count` pages from `page` on; where they ended. */
type Access = (page: number, count?: number, kind?: 'read' | 'write') => string;
interface Case {
  spec?: VmSpec;
  /** Returns what else must be alike. */
  run(vm: TestVm, access: Access): unknown;
  leaves: string[];
}

const cases: Record<string, Case> = {
  'pages that the host has': {
    run: (vm, access) => {
      access(3);
      vm.host.access({ hva: SLOT_HVA, length: SIZE, write: true });
      vm.host.mprotect({ hva: SLOT_HVA + 100 * PAGE, length: 50 * PAGE, prot: 1 });
      return [access(0, 100), access(100, 50, 'read'), access(150, 200)];
    },
    leaves: ['0..349 4K'],
  },
  'pages that the host makes, to the end of the slot': {
    run: (_, access) => [access(3), access(600), access(0, 1000, 'read'), access(1000, 40)],
    leaves: ['0..1023 4K'],
  },
  'a TD is left and entered for each': {
    spec: { type: 'tdx' },
    run: (_, access) => [access(3), access(4, 100)],
    leaves: ['3..103 4K'],
  },
  'a page whose content may go is kept by a write': {
    run: (vm, access) => {
      access(0, 8);
      vm.host.madvise({ hva: SLOT_HVA, length: 8 * PAGE, advice: 'FREE' });
      access(0, 4);
      vm.host.madvise({ hva: SLOT_HVA, length: 8 * PAGE, advice: 'PAGEOUT' });
      return vm.host.pageIdleSet({ hva: SLOT_HVA, pages: 8 });
    },
    leaves: ['0..3 4K'],
  },
  'a huge page of the host replaces the table': {
    run: (vm, access) => {
      access(5);
      vm.host.mmap({ kind: 'thp', hva: SLOT_HVA, length: SIZE });
      vm.host.access({ hva: SLOT_HVA, length: PAGE, write: true });
      return access(6);
    },
    leaves: ['0..511 2M'],
  },
  'a huge page that the host makes replaces the table': {
    run: (vm, access) => {
      access(5);
      vm.host.mmap({ kind: 'thp', hva: SLOT_HVA, length: SIZE });
      return access(6);
    },
    leaves: ['0..511 2M'],
  },
  'host memory without permission': {
    run: (vm, access) => {
      access(0, 8);
      // The cut of the area fires an event for the whole 2M around it.
      vm.host.mprotect({ hva: SLOT_HVA, length: 4 * PAGE, prot: 0 });
      return [access(0), access(4), access(2, 1, 'read')];
    },
    leaves: ['4..4 4K'],
  },
  'a read-only slot': {
    spec: { slots: [{ startGfn: 0, npages: 1024, flags: 2 }] },
    run: (_, access) => [access(0, 8, 'read'), access(9)],
    leaves: ['0..7 4K'],
  },
  'a logged slot': {
    spec: { slots: [{ startGfn: 0, npages: 1024, flags: 1 }] },
    run: (vm, access) => [access(0), access(1, 8), access(9, 4, 'read'), vm.getDirtyLog({ slot: 0 })],
    leaves: ['0..12 4K'],
  },
  'an invalidation that goes on': {
    run: (vm, access) => {
      access(0, 8);
      vm.host.invalidateRangeStart({ hva: SLOT_HVA, length: 4 * PAGE });
      return [access(0), access(9), access(2, 1, 'read')];
    },
    leaves: ['4..7 4K', '9..9 4K'],
  },
  'a slot that is being deleted': {
    run: (vm, access) => {
      access(0, 8);
      vm.unmapGfnRange({ slot: 0, start: 0, end: 4 });
      vm.enableCap({ cap: 213, args: [128] });
      const pieces = vm.steps({ stopAt: ['slot-invalid'] }, () => vm.setUserMemoryRegion({ ...slot0, memorySize: 0 }));
      pieces.next();
      return [access(0), [...pieces].length];
    },
    leaves: [],
  },
  'what was MMIO is memory now': {
    spec: { slots: [{ startGfn: 0, npages: 16 }], memory: SIZE },
    run: (vm, access) => {
      access(0, 8);
      access(20, 1, 'read');
      vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA + 16 * PAGE, length: 16 * PAGE });
      const memory = { guestPhysAddr: 16 * PAGE, memorySize: 16 * PAGE, userspaceAddr: SLOT_HVA + 16 * PAGE };
      vm.setUserMemoryRegion({ slot: 1, ...memory });
      const mapped = access(16, 16);
      vm.unmapGfnRange({ slot: 1, start: 16, end: 24 });
      return [mapped, vm.spte(20)];
    },
    leaves: ['0..7 4K', '24..31 4K'],
  },
  'host memory behind the end of the slot': {
    spec: { slots: [], memory: SIZE },
    run: (vm, access) => {
      vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: SIZE });
      vm.setUserMemoryRegion({ ...slot0, memorySize: 16 * PAGE });
      return [access(3), access(0, 40)];
    },
    leaves: ['0..15 4K'],
  },
  'private pages that were read and are written': {
    spec: { type: 'sw-protected', slots: [{ startGfn: 0, npages: 1024, guestMemfd: true }] },
    run: (vm, access) => {
      vm.setMemoryAttributes({ address: 0, size: 8 * PAGE, attributes: 8 });
      const answers = [access(0, 8, 'read'), access(0), access(4), access(8, 2)];
      vm.slotFiles[0]?.punchHole(0, 8 * PAGE);
      return [answers, vm.losses().privatePagesLost];
    },
    leaves: ['8..9 4K'],
  },
  'shared pages of a file that is converted in place': {
    spec: { type: 'sw-protected', kernel: 'linux-6.16', filterForm: 'gmem-in-place', slots: [], memory: SIZE },
    run: (vm, access) => {
      const file = vm.createGuestMemfd({ size: SIZE, flags: 3 }); // MMAP, INIT_SHARED
      vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: SIZE });
      vm.setUserMemoryRegion2({ ...slot0, flags: 4, guestMemfd: file.fd });
      return [access(0), access(1, 8), vm.host.pageIdleSet({ hva: SLOT_HVA, pages: 16 })];
    },
    leaves: ['0..8 4K'],
  },
};

test.each(Object.entries(cases))('%s', (_, { spec, run, leaves }) => {
  const [stepByStep, atOnce] = [65_536, 0].map((traceRecords) => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 1024 }], ...spec, traceRecords });
    const shared = vm.options.type === 'tdx' ? 2 ** (vm.options.gpaw - 1) : 0;
    const access: Access = (page, count = 1, kind = 'write') => {
      const gpa = shared + page * PAGE;
      // A TD is left after each call: there both do all by one.
      if (traceRecords === 0 || shared !== 0) return exitText(vm.vcpus[0].access({ gpa, kind, count }), 0);
      for (let at = 0; ; at++) {
        const exit = vm.vcpus[0].access({ gpa: gpa + at * PAGE, kind });
        if (exit.reason !== 'done' || at === count - 1) return exitText(exit, at);
      }
    };
    const answer = run(vm, access);
    return { answer, leaves: leavesOf(vm), stats: vm.stats(), losses: vm.losses() };
  });
  expect(atOnce).toEqual(stepByStep);
  expect(atOnce.leaves).toEqual(leaves);
});

function exitText({ reason, gpa, done, errno }: ReturnType<Vm['vcpus'][0]['access']>, before: number): string {
  return `${reason} ${errno ?? ''} at ${gpa} after ${before + done}`;
}
