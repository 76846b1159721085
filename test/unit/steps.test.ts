// An operation in pieces: equal to one run, seen from outside between its pieces, and never left half done.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { createVm, createVmSync, KvmError, type Pause, type StopPoint, type Vm } from '../../src/index.ts';
import { eventLines } from '../support/events.ts';
import { makeVm, PAGE } from '../support/make-vm.ts';
import { FIRST, FIRST_PAGES, hvaOf, prepared, SECOND } from '../support/prepared-vm.ts';

const TYPES = ['default', 'sw-protected', 'snp', 'tdx'] as const;
const BUDGETS = [1, 3, 7, 64, 1000];

const slot0 = { slot: 0, guestPhysAddr: FIRST * PAGE, userspaceAddr: hvaOf(FIRST), memorySize: FIRST_PAGES * PAGE };
const slot1 = { ...slot0, slot: 1, guestPhysAddr: 0x2010 * PAGE };
const everything = { onlyPrivate: true, onlyShared: true, attrFilter: 3 };

const operations: Record<string, (vm: Vm) => unknown> = {
  unmapGfnRange: (vm) => vm.unmapGfnRange({ slot: 0, start: FIRST + 3, end: FIRST + 1500, ...everything }),
  zapGfnRange: (vm) => vm.zapGfnRange(FIRST + 3, SECOND + 900),
  munmap: (vm) => vm.host.munmap({ hva: hvaOf(FIRST + 100), length: 1000 * PAGE }),
  'a notifier event': (vm) => vm.host.invalidateRangeStart({ hva: hvaOf(FIRST + 100), length: 1000 * PAGE }),
  'deleting a slot': (vm) => vm.setUserMemoryRegion({ ...slot0, memorySize: 0 }),
  'moving a slot': (vm) => vm.setUserMemoryRegion({ ...slot0, flags: 1, guestPhysAddr: 0x8000 * PAGE }),
  'starting the dirty log': (vm) => vm.setUserMemoryRegion({ ...slot1, flags: 1 }),
  'stopping the dirty log': (vm) => vm.setUserMemoryRegion(slot0),
  getDirtyLog: (vm) => vm.getDirtyLog({ slot: 0 }),
  clearDirtyLog: (vm) => vm.clearDirtyLog({ slot: 0, firstPage: 64, numPages: 640, bitmap: 0xf0f0n }),
  'zapping all roots': (vm) => vm.writeParameter('nx_huge_pages', true),
  destroy: (vm) => {
    vm.destroy();
    for (const file of vm.guestMemfds) file.close();
  },
};
const privateOnly: Record<string, (vm: Vm) => unknown> = {
  'converting to shared': (vm) =>
    vm.setMemoryAttributes({ address: (SECOND + 50) * PAGE, size: 600 * PAGE, attributes: 0 }),
  'converting to private': (vm) => vm.setMemoryAttributes({ address: FIRST * PAGE, size: 5000 * PAGE, attributes: 8 }),
  'punching a hole': (vm) => vm.guestMemfds[0].punchHole(100 * PAGE, 700 * PAGE),
  'closing a guest_memfd': (vm) => vm.guestMemfds[0].close(),
};

/** A masked clear never yields; the RFC's conversion of an SNP VM zaps nothing. */
function mayPause(vm: Vm, name: string): boolean {
  return !/DirtyLog/.test(name) && !(vm.options.type === 'snp' && /converting/.test(name));
}

/** All that can be seen of a VM. */
function seen(vm: Vm): unknown {
  return {
    stats: vm.stats(),
    losses: vm.losses(),
    trace: vm.trace().flatMap((event) => eventLines(event as never)),
    dropped: vm.traceDropped,
    leafs: vm.leafs(),
    check: vm.check(),
    invalidate: vm.invalidate,
  };
}

describe.each(TYPES)('%s', (type) => {
  const all = { ...operations, ...(type === 'default' ? {} : privateOnly) };
  test.each(Object.entries(all))('%s in pieces equals one run', (name, run) => {
    for (const kind of ['anon4k', 'thp'] as const) {
      // Slots are deleted one by one where the quirk is off.
      const vm = prepared({ type, traceRecords: 200_000, quirks: { slotZapAll: kind === 'thp' } }, kind);
      const base = vm.snapshot();
      const result = run(vm);
      const expected = seen(vm);
      let pauses = 0;
      for (const budget of BUDGETS) {
        vm.restore(base);
        const pieces = vm.steps({ budget }, () => run(vm));
        let piece = pieces.next();
        for (; !piece.done; piece = pieces.next()) {
          pauses++;
          expect(piece.value.at).toBe('budget');
          expect(vm.paused).toBe(true);
        }
        expect(piece.value, `budget ${budget}`).toEqual(result);
        expect(seen(vm), `budget ${budget}, ${kind}`).toEqual(expected);
        expect(vm.paused).toBe(false);
      }
      if (kind === 'anon4k' && mayPause(vm, name)) expect(pauses).toBeGreaterThan(0);
    }
  });
});

test('questions in between do not change what a paused operation was given', () => {
  const vm = prepared({ type: 'default', traceRecords: 200_000 }, 'thp');
  vm.enableCap({ cap: 168, args: [3] });
  const slot = { ...slot0, slot: 5, flags: 1, guestPhysAddr: 2 ** 31, userspaceAddr: hvaOf(0x2000 + FIRST) };
  vm.setUserMemoryRegion({ ...slot, flags: 0 });
  vm.host.access({ hva: hvaOf(0x2000), length: 4096 * PAGE, write: true });
  vm.vcpus[0].preFaultMemory({ gpa: 2 ** 31, size: FIRST_PAGES * PAGE });
  vm.setUserMemoryRegion(slot);
  vm.trace();
  const base = vm.snapshot();
  const bitmap = Uint8Array.from({ length: FIRST_PAGES / 8 }, (_, index) => (index * 37) % 256);
  const clear = () => vm.clearDirtyLog({ slot: 5, firstPage: 0, numPages: FIRST_PAGES, bitmap });
  clear();
  const expected = [vm.stats(), vm.leafs(), vm.getDirtyLog({ slot: 5 })];
  vm.restore(base);
  let pauses = 0;
  for (const _ of vm.steps({ budget: 5 }, clear)) {
    pauses++;
    vm.leafs();
    vm.check();
    vm.walk(2 ** 31);
  }
  expect(pauses).toBeGreaterThan(0);
  expect([vm.stats(), vm.leafs(), vm.getDirtyLog({ slot: 5 })]).toEqual(expected);
});

test('a pause tells where the operation goes on', () => {
  const vm = makeVm({ maxphyaddr: 48, slots: [{ startGfn: 0, npages: 1024 }] });
  vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 1024 });
  const nexts: Pause[] = [];
  // The way down visits three entries, so the first piece has 97 left for leaves.
  const pieces = vm.steps({ budget: 100 }, () => vm.unmapGfnRange({ slot: 0, start: 0, end: 1024 }));
  for (const pause of pieces) nexts.push(pause);
  expect(nexts[0]).toEqual({ at: 'budget', nextGfn: 97 });
  expect(nexts.map(({ nextGfn }) => nextGfn)).toEqual([97, 197, 297, 397, 497, 596, 696, 796, 896, 996]);
});

test('what is left early is finished', () => {
  const vm = prepared({ type: 'default' }, 'anon4k');
  const base = vm.snapshot();
  vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES);
  const expected = vm.stats();
  vm.restore(base);
  for (const _ of vm.steps({ budget: 20 }, () => vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES))) break;
  expect(vm.paused).toBe(false);
  expect(vm.stats()).toEqual(expected);
  vm.unmapGfnRange({ slot: 0, start: FIRST, end: FIRST + 1 });
});

test('a refusal comes through, with nothing changed', () => {
  const vm = prepared({ type: 'default' }, 'anon4k');
  const before = vm.snapshot();
  const pieces = vm.steps({ budget: 20 }, () => vm.unmapGfnRange({ slot: 9, start: 0, end: 1 }));
  expect(() => pieces.next()).toThrow(KvmError);
  expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
});

/** Calls that change state. */
const changes: Record<string, (vm: Vm) => unknown> = {
  ...operations,
  'creating a slot': (vm) => vm.setUserMemoryRegion({ ...slot0, slot: 7, guestPhysAddr: 2 ** 34 }),
  createGuestMemfd: (vm) => vm.createGuestMemfd({ size: PAGE }),
  enableCap: (vm) => vm.enableCap({ cap: 168, args: [1] }),
  ageGfn: (vm) => vm.ageGfn({ slot: 0, start: FIRST, end: FIRST + 9 }),
  testAgeGfn: (vm) => vm.testAgeGfn({ slot: 0, start: FIRST, end: FIRST + 9 }),
  flushRemoteTlbs: (vm) => vm.flushRemoteTlbs(),
  'host access': (vm) => vm.host.access({ hva: hvaOf(FIRST), length: PAGE, write: true }),
  mmap: (vm) => vm.host.mmap({ kind: 'thp', hva: hvaOf(FIRST), length: PAGE }),
};
const vcpuCalls: Record<string, (vm: Vm) => unknown> = {
  run: (vm) => vm.vcpus[0].run(),
  access: (vm) => vm.vcpus[0].access({ gpa: 0x2010 * PAGE, kind: 'read' }),
  preFaultMemory: (vm) => vm.vcpus[0].preFaultMemory({ gpa: 0x2010 * PAGE, size: PAGE }),
  beginFault: (vm) => vm.vcpus[0].beginFault({ gpa: 0x2010 * PAGE, kind: 'read' }),
};

test.each(Object.entries({ ...changes, ...vcpuCalls }))(
  '%s waits for an operation paused under the lock: EBUSY',
  (_, call) => {
    const vm = prepared({ type: 'sw-protected' }, 'anon4k');
    const pieces = vm.steps({ budget: 20 }, () => vm.zapGfnRange(FIRST, FIRST + FIRST_PAGES));
    expect(pieces.next().done).toBe(false);
    const before = vm.snapshot();
    expect(() => call(vm)).toThrow(/: EBUSY: another operation of this VM is paused/);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
    // Questions are answered.
    expect(vm.leafs().length).toBeGreaterThan(0);
    expect(vm.stats().pages_4k).toBeGreaterThan(0);
    pieces.return(undefined);
    expect(vm.paused).toBe(false);
  },
);

const stops: [StopPoint, (vm: Vm) => unknown][] = [
  ['attributes-zapped', privateOnly['converting to shared']],
  ['attributes-stored', privateOnly['converting to shared']],
  ['gmem-zapped', privateOnly['punching a hole']],
  ['slot-invalid', operations['deleting a slot']],
  ['notifier-started', operations.munmap],
];
describe.each(stops)('at %s', (stop, call) => {
  const stopped = () => {
    const vm = prepared({ type: 'sw-protected' }, 'anon4k');
    const pieces = vm.steps({ stopAt: [stop] }, () => call(vm));
    expect(pieces.next()).toEqual({ done: false, value: { at: stop } });
    return { vm, pieces };
  };

  test('vCPUs fault, and the operation goes on', () => {
    const { vm, pieces } = stopped();
    const before = vm.stats().pf_fixed;
    // Outside of what is invalidated.
    expect(vm.vcpus[1].access({ gpa: (0x2010 + 1590) * PAGE, kind: 'write' }).reason).toBe('done');
    expect(vm.stats().pf_fixed).toBe(before + 1);
    const rest = [...pieces];
    expect(rest.every(({ at }) => at === stop)).toBe(true);
    expect(vm.paused).toBe(false);
    expect(vm.invalidate.inProgress).toBe(0);
  });

  test.each(Object.entries(changes))('%s is refused with EBUSY', (_, change) => {
    const { vm, pieces } = stopped();
    const before = vm.snapshot();
    expect(() => change(vm)).toThrow(/: EBUSY: /);
    expect(Buffer.compare(vm.snapshot(), before)).toBe(0);
    pieces.return(undefined);
  });

  test('the stop does not show in the end', () => {
    const { vm, pieces } = stopped();
    for (const _ of pieces);
    const once = prepared({ type: 'sw-protected' }, 'anon4k');
    call(once);
    expect(vm.stats()).toEqual(once.stats());
    expect(vm.leafs()).toEqual(once.leafs());
  });
});

test('a fault in the hull is retried while the conversion stands between its steps', () => {
  const vm = prepared({ type: 'sw-protected' }, 'anon4k');
  const pieces = vm.steps({ stopAt: ['attributes-zapped'] }, () => privateOnly['converting to shared'](vm));
  pieces.next();
  expect(vm.invalidate).toMatchObject({ inProgress: 1, start: SECOND + 50, end: SECOND + 650 });
  expect(vm.vcpus[0].access({ gpa: (SECOND + 200) * PAGE, kind: 'read', private: true }).reason).toBe('retry');
  expect(vm.stats().retries_hull).toBeGreaterThan(0);
  for (const _ of pieces);
  expect(vm.vcpus[0].access({ gpa: (SECOND + 200) * PAGE, kind: 'read' }).reason).toBe('done');
});

describe('yieldAt()', () => {
  const mapped = () => {
    const vm = makeVm({ maxphyaddr: 48, slots: [{ startGfn: 0, npages: 1024 }] });
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 1024 });
    vm.trace();
    return vm;
  };

  test('flushes what is owed and walks down again', () => {
    const vm = mapped();
    const before = vm.stats();
    vm.yieldAt(300);
    expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 512 })).toBe(true);
    const { yields, remote_tlb_flush_requests: flushes, ...stats } = vm.stats();
    expect(yields - before.yields).toBe(1);
    expect(flushes - before.remote_tlb_flush_requests).toBe(1);
    // The way down is walked twice: the levels above the leaves, and the leaf that it came to.
    const visited = (level: number) => stats[`entries_visited_l${level}`] - before[`entries_visited_l${level}`];
    expect([4, 3, 2].map(visited)).toEqual([2, 2, 2]);
    expect(visited(1)).toBe(513);
    const names = vm.trace().map(({ name }) => name);
    expect(names.filter((name) => name === 'flush')).toHaveLength(1);
  });

  test('works once, and only for a walk that may yield', () => {
    const vm = mapped();
    const before = vm.stats().yields;
    vm.yieldAt(300);
    vm.unmapGfnRange({ slot: 0, start: 0, end: 512, mayBlock: false });
    expect(vm.stats().yields).toBe(before);
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 1024 });
    vm.unmapGfnRange({ slot: 0, start: 0, end: 512 });
    expect(vm.stats().yields).toBe(before + 1);
    vm.vcpus[0].access({ gpa: 0, kind: 'write', count: 1024 });
    vm.unmapGfnRange({ slot: 0, start: 0, end: 512 });
    expect(vm.stats().yields).toBe(before + 1);
  });
});

describe('the build that can pause', () => {
  const bytesOf = (name: string) => readFileSync(`dist/${name}`);
  const memory = 512 * PAGE;
  const piecesOf = (vm: Vm) => {
    vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: memory, userspaceAddr: hvaOf(0) });
    vm.host.mmap({ kind: 'shmem', hva: hvaOf(0), length: memory });
    vm.vcpus[0].access({ gpa: 0, kind: 'write', size: memory });
    return [...vm.steps({ budget: 100 }, () => vm.unmapGfnRange({ slot: 0, start: 0, end: 512 }))].length;
  };

  test('is found beside the engine, or given', async () => {
    const options = { memory, wasm: bytesOf('eptsim.wasm') };
    const stepsWasm = bytesOf('eptsim.steps.wasm');
    const one = piecesOf(createVmSync({ memory }));
    expect(one).toBe(5);
    expect(piecesOf(createVmSync(options))).toBe(one);
    expect(piecesOf(createVmSync({ ...options, stepsWasm }))).toBe(one);
    expect(piecesOf(await createVm({ ...options, stepsWasm: new WebAssembly.Module(stepsWasm) }))).toBe(one);
    // It may also be the only one.
    expect(piecesOf(createVmSync({ memory, wasm: stepsWasm }))).toBe(one);
  });

  test('is refused where it cannot pause', () => {
    const vm = createVmSync({ memory, stepsWasm: bytesOf('eptsim.wasm') });
    expect(() => piecesOf(vm)).toThrow('stepsWasm is not the build that can pause of the same engine');
    expect(vm.unmapGfnRange({ slot: 0, start: 0, end: 512 })).toBe(true);
  });
});
