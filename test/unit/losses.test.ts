// vm.losses(): what was lost although the request didn't ask for it, by whom, and with which filter.

import { describe, expect, test } from 'vitest';
import type { CreateVmOptions, Vm } from '../../src/index.ts';
import { makeVm, PAGE, type TestVm } from '../support/make-vm.ts';
import { hvaOfSlot } from '../support/observe.ts';

const PRIVATE = 8;
const set = (vm: Vm, start: number, end: number, attributes: number) =>
  vm.setMemoryAttributes({ address: start * PAGE, size: (end - start) * PAGE, attributes });

/** A TD of `npages`, all private, mapped, accepted and written; in 2M pages where the policies say so. */
function makeTd(npages: number, options: Partial<CreateVmOptions> = {}): TestVm {
  const vm = makeVm({ type: 'tdx', ...options, slots: [{ startGfn: 0, npages, guestMemfd: true, kind: 'thp' }] });
  set(vm, 0, npages, PRIVATE);
  vm.vcpus[0].accept({ gpa: 0, size: npages * PAGE, level: 2 });
  return vm;
}
const brief = (vm: Vm) =>
  vm.losses().records.map(({ kind, root, start, end, producer }) => `${kind} ${root} [${start},${end}) by ${producer}`);

describe('content', () => {
  test('a conversion to private without a filter lists the pages that were private before it', () => {
    const vm = makeTd(64, { filterForm: 'none' });
    set(vm, 8, 16, 0);
    expect(brief(vm)).toEqual([]);
    set(vm, 0, 32, PRIVATE);
    expect(vm.losses().records).toEqual([
      ...[
        [0, 8],
        [16, 32],
      ].map(([start, end]) => ({
        kind: 'content',
        root: 'mirror',
        start,
        end,
        operation: 'setMemoryAttributes',
        producer: 'set memory attributes',
        filter: { form: 'none', onlyPrivate: false, onlyShared: false, attrFilter: 1, attributes: 8 },
        request: { start: 0, end: 32 },
      })),
    ]);
    expect(vm.losses()).toMatchObject({ privatePagesLost: 8 + 24, recordsDropped: 0 });
  });

  test('with the filter nothing is listed', () => {
    const vm = makeTd(64, { filterForm: 'rfc-v4' });
    set(vm, 8, 16, 0);
    set(vm, 0, 32, PRIVATE);
    expect(brief(vm)).toEqual([]);
  });

  test.each<[string, (vm: TestVm) => unknown]>([
    ['a conversion to shared', (vm) => set(vm, 3, 9, 0)],
    ['a punched hole', (vm) => vm.slotFiles[0]?.punchHole(3 * PAGE, 6 * PAGE)],
    ['a memory error', (vm) => vm.slotFiles[0]?.memoryError(5)],
    ['a closed file', (vm) => vm.slotFiles[0]?.close()],
    [
      'a deleted slot',
      (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: hvaOfSlot(0) }),
    ],
    ['a call that means private', (vm) => vm.unmapGfnRange({ slot: 0, start: 3, end: 9, onlyPrivate: true })],
  ])('%s asks for what it takes', (_, act) => {
    const vm = makeTd(16);
    const before = vm.losses().privatePagesLost;
    act(vm);
    expect(vm.losses().privatePagesLost).toBeGreaterThan(before);
    expect(brief(vm)).toEqual([]);
  });

  test('the host that unmaps shared memory did not mean private pages', () => {
    const vm = makeTd(16, { filterForm: 'none' });
    vm.host.munmap({ hva: hvaOfSlot(0), length: 4 * PAGE });
    expect(brief(vm)).toEqual(['content mirror [0,4) by mmu notifier']);
    vm.zapGfnRange(4, 6);
    expect(brief(vm)).toEqual(['content mirror [0,4) by mmu notifier', 'content mirror [4,6) by kvm_zap_gfn_range']);
    vm.unmapGfnRange({ slot: 0, start: 8, end: 9, onlyShared: true });
    expect(brief(vm)[2]).toBe('content mirror [8,9) by kvm_gfn_range call');
  });

  test('a page whose cache can not be written back is lost all the same', () => {
    const vm = makeTd(16, { filterForm: 'none' });
    vm.tdx.injectStatus({ leaf: 'TDH.PHYMEM.PAGE.WBINVD', status: 'TDX_OPERAND_INVALID' });
    vm.zapGfnRange(4, 5);
    expect(vm.losses().privatePagesLost).toBe(1);
    expect(brief(vm)).toEqual(['content mirror [4,5) by kvm_zap_gfn_range']);
  });

  test('a zap over slots far apart costs what the slots cost, not the hole between them', () => {
    const far = 2 ** 34;
    const vm = makeVm({
      type: 'tdx',
      filterForm: 'none',
      slots: [0, far].map((startGfn) => ({ startGfn, npages: 16, guestMemfd: true })),
    });
    for (const start of [0, far]) {
      set(vm, start, start + 16, PRIVATE);
      vm.vcpus[0].accept({ gpa: start * PAGE, size: 16 * PAGE });
    }
    vm.zapGfnRange(8, far + 8);
    expect(brief(vm)).toEqual([
      'content mirror [8,16) by kvm_zap_gfn_range',
      `content mirror [${far},${far + 8}) by kvm_zap_gfn_range`,
    ]);
    expect(vm.check()).toEqual([]);
  });

  test('what the guest had not accepted is no content', () => {
    const vm = makeVm({ type: 'tdx', filterForm: 'none', slots: [{ startGfn: 0, npages: 16, guestMemfd: true }] });
    set(vm, 0, 16, PRIVATE);
    vm.vcpus[0].preFaultMemory({ gpa: 0, size: 16 * PAGE });
    vm.zapGfnRange(0, 16);
    expect(brief(vm)).toEqual([]);
  });
});

describe('over-zap', () => {
  test('13.5: the unmap of one page of a shared 2M leaf takes 511 gfns more', () => {
    const vm = makeVm({ slots: [{ startGfn: 0, npages: 1024, kind: 'thp' }] });
    vm.host.madvise({ hva: hvaOfSlot(0), length: 1024 * PAGE, advice: 'POPULATE_WRITE' });
    vm.vcpus[0].preFaultMemory({ gpa: 0, size: 1024 * PAGE });
    vm.unmapGfnRange({ slot: 0, start: 511, end: 512 });
    expect(brief(vm)).toEqual(['over-zap direct [0,511) by kvm_gfn_range call']);
    vm.unmapGfnRange({ slot: 0, start: 512, end: 513 });
    expect(brief(vm)[1]).toBe('over-zap direct [513,1024) by kvm_gfn_range call');
    expect(vm.losses().gfnsZappedOutside).toBe(511 + 511);
  });

  test('a private 2M leaf that goes whole takes content beyond the request; split at the border it does not', () => {
    const whole = makeTd(1024, { td: { hugePages: true } });
    set(whole, 500, 700, 0);
    expect(brief(whole)).toEqual([
      'over-zap mirror [0,500) by set memory attributes',
      'over-zap mirror [700,1024) by set memory attributes',
      'content mirror [0,500) by set memory attributes',
      'content mirror [700,1024) by set memory attributes',
    ]);
    expect(whole.losses().privatePagesLost).toBe(1024);
    const split = makeTd(1024, { td: { hugePages: true, zap: 'split-boundary' } });
    set(split, 500, 700, 0);
    expect(brief(split)).toEqual([]);
    expect(split.losses().privatePagesLost).toBe(200);
  });
});

describe('the table', () => {
  test('a restored VM has it', () => {
    const vm = makeTd(16, { filterForm: 'none' });
    vm.zapGfnRange(2, 3);
    const snapshot = vm.snapshot();
    vm.zapGfnRange(5, 6);
    expect(brief(vm)).toHaveLength(2);
    vm.restore(snapshot);
    expect(brief(vm)).toEqual(['content mirror [2,3) by kvm_zap_gfn_range']);
  });

  test('what finds it full is counted', () => {
    const vm = makeTd(8200, { filterForm: 'none' });
    for (let gfn = 0; gfn < 8196; gfn += 2) vm.zapGfnRange(gfn, gfn + 1);
    const { records, recordsDropped, privatePagesLost } = vm.losses();
    expect(records).toHaveLength(4096);
    expect(recordsDropped).toBe(2);
    expect(privatePagesLost).toBe(4098);
  });
});
