// What a random test does to a VM: commands as plain data, so that a failure prints as a list that can be read and replayed,
// and one function that carries a command out on anything with the public methods of Vm.
//
// Guest addresses lie in windows around 2M, 1G and 512G boundaries, so that most ranges straddle one.

import fc from 'fast-check';

export const PAGE = 4096;
export const WINDOW_PAGES = 1024;
/** Middles of the windows, in gfns: boundaries of 2M, 1G and 512G. */
export const ANCHORS = [2 ** 10, 2 ** 18, 2 ** 27] as const;
export const REGION_KINDS = ['anon4k', 'thp', 'shmem', 'hugetlb2m'] as const;
export const REGION_PAGES = 4096;
const REGION_HVA = 0x100000000000;
const REGION_STRIDE = 2 ** 32;

export const regionPage = (region: number): number => (REGION_HVA + region * REGION_STRIDE) / PAGE;

export interface VmConfig {
  type: 'default' | 'sw-protected' | 'tdx' | 'snp';
  kernel: 'rfc-v4' | 'linux-6.12' | 'linux-6.16';
  filterForm: 'none' | 'rfc-v4' | 'gmem-v13' | 'tdx-v18' | 'attr-filter' | null;
  maxphyaddr: number;
  gpaw: 48 | 52;
  slotZapAll: boolean;
  nxHugePages: boolean;
  eagerPageSplit: boolean;
  mmioCaching: boolean;
  hugepageGuard: boolean;
  vcpus: number;
}

export type Command =
  | {
      op: 'createSlot';
      id: number;
      asId: number;
      window: number;
      offset: number;
      npages: number;
      flags: number;
      region: number;
      hvaOffset: number;
      congruent: boolean;
      gmem: number | null;
      gmemOffset: number;
    }
  | { op: 'deleteSlot' | 'toggleLog'; slot: number }
  | { op: 'moveSlot'; slot: number; window: number; offset: number }
  | { op: 'setAttributes'; window: number; offset: number; npages: number; isPrivate: boolean }
  | { op: 'convert'; slot: number; start: number; npages: number; isPrivate: boolean }
  | { op: 'createGmem'; npages: number }
  | { op: 'punch' | 'allocate'; gmem: number; start: number; npages: number }
  | { op: 'memoryError'; gmem: number; page: number }
  | { op: 'closeGmem'; gmem: number }
  | { op: 'preFault'; vcpu: number; slot: number; start: number; npages: number }
  | { op: 'preFaultAt'; vcpu: number; window: number; offset: number; npages: number }
  | {
      op: 'access';
      vcpu: number;
      slot: number;
      page: number;
      kind: 'read' | 'write' | 'exec';
      isPrivate: boolean | null;
    }
  | {
      op: 'accessAt';
      vcpu: number;
      window: number;
      offset: number;
      kind: 'read' | 'write' | 'exec';
      isPrivate: boolean | null;
    }
  | { op: 'accept'; slot: number; start: number; npages: number }
  | {
      op: 'range';
      call: 'unmapGfnRange' | 'ageGfn' | 'testAgeGfn' | 'setSpteGfn';
      slot: number;
      start: number;
      npages: number;
      mayBlock: boolean;
      onlyPrivate: boolean;
      onlyShared: boolean;
      attrFilter: number;
      toPrivate: boolean;
      writable: boolean;
    }
  | { op: 'zapGfnRange'; window: number; offset: number; npages: number }
  | {
      op: 'host';
      call: HostCall;
      region: number;
      start: number;
      npages: number;
      prot: number;
      step: number;
      /** Of mremap: where to. */
      toRegion: number;
      to: number;
    }
  | { op: 'invalidateStart'; region: number; start: number; npages: number; blockable: boolean }
  | { op: 'invalidateEnd' }
  | {
      op: 'beginFault';
      vcpu: number;
      slot: number;
      page: number;
      kind: 'read' | 'write' | 'exec';
      isPrivate: boolean | null;
    }
  | { op: 'finishFault'; fault: number }
  | { op: 'getDirtyLog'; slot: number }
  | { op: 'clearDirtyLog'; slot: number; word: number; words: number; pattern: bigint }
  | { op: 'enableCap'; cap: 168 | 213; arg: number }
  | { op: 'writeParameter'; name: 'nx_huge_pages' | 'eager_page_split'; value: boolean }
  | { op: 'recoverNxHugePages' | 'run' | 'enterSmm' | 'leaveSmm'; vcpu: number }
  | { op: 'yieldAt'; slot: number; page: number }
  | { op: 'bad'; which: number };

export type HostCall =
  | 'POPULATE_WRITE'
  | 'POPULATE_READ'
  | 'DONTNEED'
  | 'HUGEPAGE'
  | 'COLLAPSE'
  | 'REMOVE'
  | 'FREE'
  | 'mprotect'
  | 'munmap'
  | 'remap'
  | 'access'
  | 'pageIdleSet'
  | 'mremap'
  | 'khugepaged'
  | 'migrate'
  | 'age'
  | 'testAge';

// --- Carrying a command out

/** What both Vm and the model offer; the property test drives them through it. */
// biome-ignore lint/suspicious/noExplicitAny: two classes without a common declaration, same methods by contract
export type AnyVm = any;

/** One of the two VMs with the handles a sequence has made on it. */
export interface Target {
  readonly vm: AnyVm;
  readonly hasPrivateMem: boolean;
  readonly isTd: boolean;
  readonly readsNoFilter: boolean;
  readonly gmems: { fd: number; isOpen: boolean; handle: AnyVm }[];
  readonly faults: { vcpu: number; id: number }[];
  /** hva ranges of bare invalidations that have not ended. */
  readonly started: { hva: number; length: number }[];
  /** Slots by their order of making; shared by both targets in content. */
  readonly slots: SlotPlace[];
}
export interface SlotPlace {
  id: number;
  asId: number;
  base: number;
  npages: number;
  flags: number;
  hva: number;
}

export function newTarget(vm: AnyVm, config: VmConfig): Target {
  return {
    vm,
    hasPrivateMem: config.type !== 'default',
    isTd: config.type === 'tdx',
    readsNoFilter: config.filterForm === 'none' || (config.filterForm === null && config.kernel === 'linux-6.12'),
    gmems: [],
    faults: [],
    started: [],
    slots: [],
  };
}

const gfnOf = (window: number, offset: number): number => ANCHORS[window % ANCHORS.length] + offset;

function clipped(slot: SlotPlace, start: number, npages: number): { start: number; end: number } {
  const first = slot.base + (start % slot.npages);
  return { start: first, end: Math.min(first + npages, slot.base + slot.npages) };
}

/** Performs `command`; undefined if there is nothing to do it to. Throws what the VM throws. */
export function perform(target: Target, command: Command): unknown {
  const { vm } = target;
  const slotOf = (index: number): SlotPlace | undefined =>
    target.slots.length === 0 ? undefined : target.slots[index % target.slots.length];
  const regionOf = (slot: SlotPlace) => ({
    slot: slot.asId * 65_536 + slot.id,
    flags: slot.flags,
    guestPhysAddr: slot.base * PAGE,
    memorySize: slot.npages * PAGE,
    userspaceAddr: slot.hva,
  });
  // null: what the gfn's attribute says.
  const privateness = (gfn: number, wanted: boolean | null): boolean => wanted ?? (vm.attributesOf(gfn) & 8) !== 0;
  switch (command.op) {
    case 'createSlot': {
      const base = gfnOf(command.window, command.offset);
      const region = regionPage(command.region);
      const page = command.congruent
        ? region + (base % 512) + Math.floor(command.hvaOffset / 512) * 512
        : region + command.hvaOffset;
      const isBound = command.gmem !== null && target.gmems.length > 0;
      const gmem = isBound ? target.gmems[(command.gmem ?? 0) % target.gmems.length] : undefined;
      // One in eight keeps what KVM refuses.
      const keep = command.npages % 8 === 0;
      const slot = {
        id: command.id,
        asId: target.hasPrivateMem && !keep ? 0 : command.asId,
        base,
        npages: command.npages,
        flags: gmem && !keep ? 0 : command.flags,
        hva: page * PAGE,
      };
      if (gmem) {
        slot.flags |= 4;
        vm.setUserMemoryRegion2({
          ...regionOf(slot),
          guestMemfd: gmem.isOpen ? gmem.fd : 0x7fff_0000,
          guestMemfdOffset: command.gmemOffset * PAGE,
        });
      } else vm.setUserMemoryRegion(regionOf(slot));
      target.slots.push(slot);
      return undefined;
    }
    case 'deleteSlot': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      vm.setUserMemoryRegion2({ ...regionOf(slot), flags: 0, memorySize: 0 });
      target.slots.splice(target.slots.indexOf(slot), 1);
      return undefined;
    }
    case 'moveSlot': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const base = gfnOf(command.window, command.offset);
      vm.setUserMemoryRegion({ ...regionOf({ ...slot, base }) });
      slot.base = base;
      return undefined;
    }
    case 'toggleLog': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      vm.setUserMemoryRegion(regionOf({ ...slot, flags: slot.flags ^ 1 }));
      slot.flags ^= 1;
      return undefined;
    }
    case 'setAttributes':
      vm.setMemoryAttributes({
        address: gfnOf(command.window, command.offset) * PAGE,
        size: command.npages * PAGE,
        attributes: command.isPrivate ? 8 : 0,
      });
      return undefined;
    case 'convert': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const { start, end } = clipped(slot, command.start, command.npages);
      vm.setMemoryAttributes({
        address: start * PAGE,
        size: (end - start) * PAGE,
        attributes: command.isPrivate ? 8 : 0,
      });
      return undefined;
    }
    case 'createGmem': {
      const handle = vm.createGuestMemfd({ size: command.npages * PAGE });
      target.gmems.push({ fd: handle.fd, isOpen: true, handle });
      return undefined;
    }
    case 'punch':
    case 'allocate':
    case 'memoryError':
    case 'closeGmem': {
      if (target.gmems.length === 0) return undefined;
      const gmem = target.gmems[command.gmem % target.gmems.length];
      // Numbers are reused: a closed file's is left alone then.
      if (!gmem.isOpen && target.gmems.some((other) => other.isOpen && other.fd === gmem.fd)) return undefined;
      if (command.op === 'punch') gmem.handle.punchHole(command.start * PAGE, command.npages * PAGE);
      else if (command.op === 'allocate') gmem.handle.allocate(command.start * PAGE, command.npages * PAGE);
      else if (command.op === 'memoryError') gmem.handle.memoryError(command.page);
      else {
        gmem.handle.close();
        gmem.isOpen = false;
      }
      return undefined;
    }
    case 'preFault': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const { start, end } = clipped(slot, command.start, command.npages);
      return vm.vcpus[command.vcpu % vm.vcpus.length].preFaultMemory({ gpa: start * PAGE, size: (end - start) * PAGE });
    }
    case 'preFaultAt':
      return vm.vcpus[command.vcpu % vm.vcpus.length].preFaultMemory({
        gpa: gfnOf(command.window, command.offset) * PAGE,
        size: command.npages * PAGE,
      });
    case 'access':
    case 'beginFault': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const vcpu = command.vcpu % vm.vcpus.length;
      const gfn = slot.base + (command.page % slot.npages);
      const a = { gpa: gfn * PAGE, kind: command.kind, private: privateness(gfn, command.isPrivate) };
      if (command.op === 'access') return vm.vcpus[vcpu].access(a);
      target.faults.push({ vcpu, id: vm.vcpus[vcpu].beginFault(a) });
      return undefined;
    }
    case 'accessAt':
      return vm.vcpus[command.vcpu % vm.vcpus.length].access({
        gpa: gfnOf(command.window, command.offset) * PAGE,
        kind: command.kind,
        private: privateness(gfnOf(command.window, command.offset), command.isPrivate),
      });
    case 'finishFault': {
      if (target.faults.length === 0) return undefined;
      const fault = target.faults[command.fault % target.faults.length];
      const result = vm.vcpus[fault.vcpu].finishFault(fault.id);
      if (result !== 'frozen') target.faults.splice(target.faults.indexOf(fault), 1);
      return result;
    }
    case 'accept': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const { start, end } = clipped(slot, command.start, command.npages);
      return vm.vcpus[0].accept({ gpa: start * PAGE, size: (end - start) * PAGE });
    }
    case 'range': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const npages = command.call === 'setSpteGfn' ? 1 : command.npages;
      // A TD's private leafs are never set again: only the shared ones may be meant.
      const isShared = command.call === 'setSpteGfn' && target.isTd;
      if (isShared && target.readsNoFilter) return undefined;
      return vm[command.call]({
        slot: slot.id,
        asId: slot.asId,
        ...clipped(slot, command.start, npages),
        arg:
          command.call === 'setSpteGfn'
            ? { pte: { writable: command.writable } }
            : { attributes: command.toPrivate ? 8 : 0 },
        mayBlock: command.mayBlock,
        onlyPrivate: command.onlyPrivate && !isShared,
        onlyShared: command.onlyShared || isShared,
        attrFilter: isShared ? 1 : command.attrFilter,
      });
    }
    case 'zapGfnRange': {
      // A TD must never get there.
      if (target.isTd) return undefined;
      const start = gfnOf(command.window, command.offset);
      vm.zapGfnRange(start, start + command.npages);
      return undefined;
    }
    case 'host':
      return performHost(vm.host, command);
    case 'invalidateStart': {
      const range = { hva: (regionPage(command.region) + command.start) * PAGE, length: command.npages * PAGE };
      vm.host.invalidateRangeStart({ ...range, blockable: command.blockable });
      target.started.push(range);
      return undefined;
    }
    case 'invalidateEnd': {
      const range = target.started.pop();
      if (range) vm.host.invalidateRangeEnd(range);
      return undefined;
    }
    case 'getDirtyLog': {
      const slot = slotOf(command.slot);
      return slot && vm.getDirtyLog({ slot: slot.asId * 65_536 + slot.id });
    }
    case 'clearDirtyLog': {
      const slot = slotOf(command.slot);
      if (!slot) return undefined;
      const firstPage = Math.min(command.word, Math.floor((slot.npages - 1) / 64)) * 64;
      const numPages = Math.min(command.words * 64, slot.npages - firstPage);
      return vm.clearDirtyLog({ slot: slot.asId * 65_536 + slot.id, firstPage, numPages, bitmap: command.pattern });
    }
    case 'enableCap':
      return vm.enableCap({ cap: command.cap, args: [command.arg] });
    case 'writeParameter':
      return vm.writeParameter(command.name, command.value);
    case 'recoverNxHugePages':
      return vm.recoverNxHugePages();
    case 'run':
    case 'enterSmm':
    case 'leaveSmm':
      return vm.vcpus[command.vcpu % vm.vcpus.length][command.op]();
    case 'yieldAt': {
      const slot = slotOf(command.slot);
      return slot && vm.yieldAt(slot.base + (command.page % slot.npages));
    }
    case 'bad':
      return BAD_CALLS[command.which % BAD_CALLS.length](target);
  }
}

function performHost(host: AnyVm, command: Extract<Command, { op: 'host' }>): unknown {
  const hva = (regionPage(command.region) + command.start) * PAGE;
  const length = command.npages * PAGE;
  // Whether shared memory collapses is an input of the simulator, not a rule; so it stays within its region.
  const isShmem = REGION_KINDS[command.region] === 'shmem';
  if (command.call === 'COLLAPSE' && isShmem) return undefined;
  switch (command.call) {
    case 'mprotect':
      return host.mprotect({ hva, length, prot: command.prot });
    case 'munmap':
      return host.munmap({ hva, length });
    case 'remap':
      // mmap() over what munmap() made a hole.
      host.munmap({ hva, length });
      return host.mmap({ kind: REGION_KINDS[command.region], hva, length });
    case 'access':
      return host.access({ hva, length, write: command.prot !== 0, step: command.step * PAGE });
    case 'pageIdleSet':
      host.pageIdleSet({ hva, pages: command.npages });
      return undefined;
    case 'mremap':
      return host.mremap({
        old: hva,
        length,
        new: (regionPage(isShmem ? command.region : command.toRegion) + command.to) * PAGE,
      });
    case 'khugepaged':
      return isShmem ? undefined : host.khugepaged({ hva, length });
    case 'migrate':
      return host.migrate({ hva, length });
    case 'age':
      return host.age({ hva, length });
    case 'testAge':
      return host.testAge({ hva });
    case 'FREE': {
      // Whole huge pages: what else a partial one goes through is not the model's business.
      const aligned = Math.floor(hva / 2 ** 21) * 2 ** 21;
      return host.madvise({ hva: aligned, length: Math.ceil(length / 2 ** 21) * 2 ** 21, advice: 'FREE' });
    }
    default:
      return host.madvise({ hva, length, advice: command.call });
  }
}

/** Calls that KVM refuses whatever the VM's state; each must leave it as it was. */
export const BAD_CALLS: readonly ((target: Target) => unknown)[] = [
  ({ vm }) => vm.setMemoryAttributes({ address: 0, size: 0, attributes: 0 }),
  ({ vm }) => vm.setMemoryAttributes({ address: 1, size: PAGE, attributes: 0 }),
  ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE + 1, attributes: 0 }),
  ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 4 }),
  ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 1n << 63n }),
  ({ vm }) => vm.setMemoryAttributes({ address: 0, size: PAGE, attributes: 0, flags: 1 }),
  ({ vm }) => vm.setMemoryAttributes({ address: (1n << 64n) - 4096n, size: PAGE, attributes: 0 }),
  ({ vm }) => vm.setMemoryAttributes({ address: PAGE, size: (1n << 64n) - 4096n, attributes: 0 }),
  ({ vm }) => vm.createGuestMemfd({ size: 0 }),
  ({ vm }) => vm.createGuestMemfd({ size: PAGE + 1 }),
  ({ vm }) => vm.createGuestMemfd({ size: 1n << 63n }),
  ({ vm }) => vm.createGuestMemfd({ size: PAGE, flags: 1 }),
  ({ vm }) => vm.vcpus[0].preFaultMemory({ gpa: 0, size: 0 }),
  ({ vm }) => vm.vcpus[0].preFaultMemory({ gpa: 1, size: PAGE }),
  ({ vm }) => vm.vcpus[0].preFaultMemory({ gpa: 0, size: 1 }),
  ({ vm }) => vm.vcpus[0].preFaultMemory({ gpa: 0, size: PAGE, flags: 1 }),
  ({ vm }) => vm.vcpus[0].preFaultMemory({ gpa: (1n << 64n) - 4096n, size: PAGE }),
  ({ vm }) => vm.enableCap({ cap: 168, args: [2] }),
  ({ vm }) => vm.enableCap({ cap: 168, args: [4] }),
  ({ vm }) => vm.enableCap({ cap: 168, args: [1], flags: 1 }),
  ({ vm }) => vm.getDirtyLog({ slot: 32_764 }),
  ({ vm }) => vm.getDirtyLog({ slot: 5 * 65_536 }),
  ({ vm }) => vm.getDirtyLog({ slot: 300 }),
  ({ vm }) => vm.clearDirtyLog({ slot: 300, firstPage: 1, numPages: 64, bitmap: 0n }),
  ({ vm }) => vm.clearDirtyLog({ slot: 300, firstPage: 0, numPages: 64, bitmap: 0n }),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ slot: 32_764 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ slot: 2 * 65_536 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ flags: 8 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ flags: 4 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ memorySize: 0 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ memorySize: PAGE + 1 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ memorySize: 2n ** 43n })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ guestPhysAddr: 1 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ guestPhysAddr: (1n << 64n) - 4096n })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ userspaceAddr: 1 })),
  ({ vm }) => vm.setUserMemoryRegion(badRegion({ userspaceAddr: 1n << 63n })),
  ({ vm }) => vm.setUserMemoryRegion2(badRegion({ flags: 5 })),
  ({ vm }) => vm.setUserMemoryRegion2({ ...badRegion({ flags: 4 }), guestMemfd: 0x7fff_0000 }),
  ({ vm }) => vm.setUserMemoryRegion2({ ...badRegion({ flags: 4 }), guestMemfd: 0x7fff_0000, guestMemfdOffset: 1 }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 0, offset: 0, length: PAGE }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 2, offset: 0, length: PAGE }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 5, offset: 0, length: PAGE }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 3, offset: 1, length: PAGE }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 3, offset: 0, length: 1 }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 3, offset: 0, length: 0 }),
  ({ gmems }) => gmems[0]?.handle.fallocate({ mode: 1, offset: 2 ** 40, length: PAGE }),
  ({ slots, vm }) => slots[0] && vm.unmapGfnRange({ ...inSlot(slots[0]), start: slots[0].base + slots[0].npages }),
  ({ slots, vm }) => slots[0] && vm.unmapGfnRange({ ...inSlot(slots[0]), end: slots[0].base }),
  ({ slots, vm }) => slots[0] && vm.ageGfn({ ...inSlot(slots[0]), end: slots[0].base + slots[0].npages + 1 }),
  ({ vm }) => vm.unmapGfnRange({ slot: 3000, start: 0, end: 1 }),
  ({ vm }) => vm.vcpus[0].finishFault(1_000_000),
  ({ vm }) => vm.host.madvise({ hva: 1, length: PAGE, advice: 'DONTNEED' }),
];

function badRegion(change: Record<string, unknown>): Record<string, unknown> {
  return { slot: 99, flags: 0, guestPhysAddr: 2 ** 34, memorySize: PAGE, userspaceAddr: REGION_HVA, ...change };
}
function inSlot(slot: SlotPlace): Record<string, unknown> {
  return { slot: slot.id, asId: slot.asId, start: slot.base, end: slot.base + 1, attrFilter: 3, onlyShared: true };
}

// --- Making them up

const window = fc.nat(ANCHORS.length - 1);
const offset = fc.oneof(
  fc.integer({ min: -WINDOW_PAGES, max: WINDOW_PAGES }),
  fc.constantFrom(-1024, -512, -1, 0, 512),
);
const npages = fc.oneof(
  fc.integer({ min: 1, max: 40 }),
  fc.integer({ min: 1, max: 1100 }),
  fc.constantFrom(1, 511, 512, 1024),
);
const slot = fc.nat(7);
const region = fc.nat(REGION_KINDS.length - 1);
const page = fc.nat(1535);
const start = fc.oneof(fc.nat(1535), fc.constantFrom(0, 512, 1024));
const vcpu = fc.nat(1);
const isPrivate = fc.boolean();
const accessPrivate = fc.constantFrom(null, null, null, null, true, false);
const kind = fc.constantFrom('read' as const, 'write' as const, 'write' as const, 'exec' as const);
export const hostCall = fc.constantFrom<HostCall[]>(
  ...(['POPULATE_WRITE', 'POPULATE_WRITE', 'POPULATE_READ', 'DONTNEED', 'DONTNEED', 'DONTNEED', 'HUGEPAGE'] as const),
  ...(['COLLAPSE', 'REMOVE', 'FREE', 'mprotect', 'mprotect', 'munmap', 'remap', 'access', 'pageIdleSet'] as const),
  ...(['mremap', 'khugepaged', 'migrate', 'age', 'testAge'] as const),
);

const createSlot = fc.record({
  op: fc.constant('createSlot' as const),
  id: fc.nat(5),
  asId: fc.constantFrom(0, 0, 0, 1),
  window,
  offset,
  npages: fc.oneof(fc.integer({ min: 1, max: 1536 }), fc.constantFrom(512, 1024, 1536)),
  flags: fc.constantFrom(0, 0, 0, 0, 1, 2),
  region,
  hvaOffset: fc.oneof(fc.nat(2048), fc.constantFrom(0, 512)),
  congruent: fc.constantFrom(true, true, true, false),
  gmem: fc.option(fc.nat(3)),
  gmemOffset: fc.constantFrom(0, 0, 1, 511, 1536, 1600, 2048),
});

export const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 5, arbitrary: createSlot },
  { weight: 1, arbitrary: fc.record({ op: fc.constantFrom('deleteSlot' as const, 'deleteSlot', 'toggleLog'), slot }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('toggleLog' as const), slot }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('moveSlot' as const), slot, window, offset }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('convert' as const), slot, start, npages, isPrivate }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('setAttributes' as const), window, offset, npages, isPrivate }) },
  {
    weight: 2,
    arbitrary: fc.record({ op: fc.constant('createGmem' as const), npages: fc.integer({ min: 1, max: 2500 }) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      op: fc.constantFrom('punch' as const, 'punch', 'allocate'),
      gmem: fc.nat(3),
      start,
      npages,
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('memoryError' as const), gmem: fc.nat(3), page }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('closeGmem' as const), gmem: fc.nat(3) }) },
  { weight: 9, arbitrary: fc.record({ op: fc.constant('preFault' as const), vcpu, slot, start, npages }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('preFaultAt' as const), vcpu, window, offset, npages }) },
  {
    weight: 9,
    arbitrary: fc.record({ op: fc.constant('access' as const), vcpu, slot, page, kind, isPrivate: accessPrivate }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('accessAt' as const),
      vcpu,
      window,
      offset,
      kind,
      isPrivate: accessPrivate,
    }),
  },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('accept' as const), slot, start, npages }) },
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('range' as const),
      call: fc.constantFrom('unmapGfnRange' as const, 'unmapGfnRange', 'ageGfn', 'testAgeGfn', 'setSpteGfn'),
      slot,
      start,
      npages,
      mayBlock: fc.boolean(),
      onlyPrivate: fc.boolean(),
      onlyShared: fc.boolean(),
      attrFilter: fc.nat(3),
      toPrivate: fc.boolean(),
      writable: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('zapGfnRange' as const), window, offset, npages }) },
  {
    weight: 12,
    arbitrary: fc.record({
      op: fc.constant('host' as const),
      call: hostCall,
      region,
      start: fc.oneof(fc.nat(3000), fc.constantFrom(0, 512, 1024, 1536)),
      npages,
      prot: fc.constantFrom(0, 1, 3, 3),
      step: fc.integer({ min: 1, max: 20 }),
      toRegion: region,
      to: fc.oneof(fc.nat(3000), fc.constantFrom(0, 512, 1024, 1536)),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('invalidateStart' as const),
      region,
      start: fc.nat(2000),
      npages,
      blockable: fc.boolean(),
    }),
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('invalidateEnd' as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({ op: fc.constant('beginFault' as const), vcpu, slot, page, kind, isPrivate: accessPrivate }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('finishFault' as const), fault: fc.nat(3) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('getDirtyLog' as const), slot }) },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('clearDirtyLog' as const),
      slot,
      word: fc.nat(24),
      words: fc.integer({ min: 1, max: 24 }),
      pattern: fc.oneof(fc.constant((1n << 64n) - 1n), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.oneof(
      fc.record({
        op: fc.constant('enableCap' as const),
        cap: fc.constant(168 as const),
        arg: fc.constantFrom(0, 1, 3),
      }),
      fc.record({ op: fc.constant('enableCap' as const), cap: fc.constant(213 as const), arg: fc.constant(128) }),
    ),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      op: fc.constant('writeParameter' as const),
      name: fc.constantFrom('nx_huge_pages' as const, 'eager_page_split'),
      value: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constantFrom('recoverNxHugePages' as const, 'run', 'run', 'enterSmm', 'leaveSmm', 'leaveSmm'),
      vcpu,
    }),
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('yieldAt' as const), slot, page }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('bad' as const), which: fc.nat(BAD_CALLS.length - 1) }) },
);

export const config: fc.Arbitrary<VmConfig> = fc.record({
  type: fc.constantFrom('default', 'sw-protected', 'tdx', 'snp'),
  kernel: fc.constantFrom('rfc-v4', 'linux-6.12', 'linux-6.16'),
  filterForm: fc.oneof(
    { weight: 3, arbitrary: fc.constant(null) },
    { weight: 1, arbitrary: fc.constantFrom('none' as const, 'rfc-v4', 'gmem-v13', 'tdx-v18', 'attr-filter') },
  ),
  maxphyaddr: fc.constantFrom(40, 52),
  gpaw: fc.constantFrom(48, 52),
  slotZapAll: fc.boolean(),
  nxHugePages: fc.constantFrom(false, false, false, true),
  eagerPageSplit: fc.constantFrom(true, true, false),
  mmioCaching: fc.constantFrom(true, true, true, false),
  hugepageGuard: fc.constantFrom(true, true, false),
  vcpus: fc.constantFrom(1, 2),
});

/** A sequence starts from memory that exists: a guest_memfd if the VM may have one, and a slot or two. */
export const sequence = fc.record({
  config,
  gmemPages: fc.integer({ min: 1500, max: 4096 }),
  first: fc.array(createSlot, { minLength: 1, maxLength: 3 }),
  commands: fc.array(command, { minLength: 1, maxLength: 26, size: 'max' }),
});
export type Sequence = { config: VmConfig; gmemPages: number; first: Command[]; commands: Command[] };
