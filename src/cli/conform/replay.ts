// Performs the operations of a recording on a simulated VM, through the public API alone.
//
// One Replay is one recording: the process that ran it, its host memory and the VM it has at the moment.
// The recorder's guest enters the vCPU, executes its code page, makes its accesses and halts; the same is done here.
// What the recording must supply is taken through HostInputs, which counts it.

import { type CreateVmOptions, closeFd, createVmSync, type GuestMemfd, openFd, type Vm } from '../../index.ts';
import {
  COMPARED_STATS,
  type Outcome,
  type TracedEvent,
  type TracedLeafs,
  type TracedMeaning,
  toMeaning,
} from './compare.ts';
import { countEvents, type HostInputs, recordedHvaRanges, recordedYields } from './host-inputs.ts';
import { InputError, type RawExit, type RecordedOperation, type Recording } from './reader.ts';
import type { Performer } from './run.ts';
import type { FieldValue } from './unfold.ts';

/** The guest's code page, in every recorded VM. */
const CODE_GPA = 0xe0000000n;
const CODE_HVA = 0x780000000000n;
const PAGE = 4096n;
const REGION_2M = 0x200000n;

const CAPABILITIES: Readonly<Record<string, number>> = { MANUAL_DIRTY_LOG_PROTECT2: 168, DISABLE_QUIRKS2: 213 };
const ERRNO_NUMBERS: Readonly<Record<string, number>> = { EFAULT: 14, EIO: 5, EINVAL: 22, EHWPOISON: 133 };

/** fds that the recorder held open in every process: one that is no guest_memfd, and another VM's guest_memfd. */
const FOREIGN_FDS: readonly (readonly [fd: number, kind: 'other' | 'guest_memfd'])[] = [
  [6, 'other'],
  [14, 'guest_memfd'],
];

/** Slots may take this much beyond what the recording's own need at once. */
const MEMORY_MARGIN = 1n << 30n;
/** Records of 16 bytes of the trace; an operation whose events do not fit is a fault, never a shorter list. */
const TRACE_RECORDS_LEAST = 1 << 16;
const TRACE_RECORDS_MOST = 1 << 23;

/** Which build of the engine runs; the recordings decide everything else. */
export type EngineOptions = Pick<CreateVmOptions, 'debug' | 'wasm'>;

/** Populations that found no huge page: for an operation, the 2M host regions that were to get one. */
export type FailedHugePages = ReadonlyMap<number, readonly bigint[]>;

type HostOperation = (host: Vm['host']) => void;

interface Slot {
  readonly gpa: bigint;
  readonly hva: bigint;
  readonly end: bigint;
  readonly flags: number;
}

/** What came back from a call: its value, or the errno it was refused with. */
type Attempt<T> =
  | { readonly value: T; readonly errno?: undefined }
  | { readonly value?: undefined; readonly errno: string };

interface LeftOver {
  readonly gpa: bigint;
  readonly size: bigint;
}

/** What an operation gave back, before the trace and the counters are read. */
interface Returned {
  ret: number;
  errno?: string | undefined;
  exits?: RawExit[];
  left?: LeftOver;
  dirty?: [number, number][];
}

function hex(value: unknown): bigint {
  return BigInt(`0x${value as string}`);
}

function errnoOf(error: unknown): string | undefined {
  if (!(error instanceof Error) || error.name !== 'KvmError') return undefined;
  return (error as Error & { code: string }).code;
}

export class Replay implements Performer {
  secondVcpuRuns = false;

  private readonly recording: Recording;
  private readonly inputs: HostInputs;
  private readonly engine: EngineOptions;
  private readonly failures: FailedHugePages;
  private readonly memory: bigint;
  private readonly traceRecords: number;
  private readonly parameters: { nx_huge_pages: boolean; eager_page_split: boolean };
  /** What was done to host memory so far, for a VM that is created later in the same process. */
  private readonly hostLog: HostOperation[] = [];
  private readonly sharedRegions: { start: bigint; end: bigint }[] = [];
  private readonly openFds = new Set<number>();
  private readonly files = new Map<number, GuestMemfd>();
  /** Pages whose idle flag is set. */
  private readonly idle = new Set<bigint>();
  private slots = new Map<number, Slot>();
  private vm: Vm | undefined;
  /** Whether `vm` stands for a recorded one; before, it only holds host memory. */
  private wasCreated = false;
  private vmOpen = false;
  /** `vm` was destroyed: its fd and every guest_memfd are closed. */
  private isGone = false;
  /** The guest executes data and never came to its halt. */
  private guestIsAstray = false;
  private statsBefore: Readonly<Record<string, number>> = {};

  constructor(
    recording: Recording,
    inputs: HostInputs,
    engine: EngineOptions = {},
    failures: FailedHugePages = new Map(),
  ) {
    this.recording = recording;
    this.inputs = inputs;
    this.engine = engine;
    this.failures = failures;
    this.memory = memoryNeeded(recording);
    this.traceRecords = traceRecordsNeeded(recording);
    this.parameters = { nx_huge_pages: recording.nxHugePages, eager_page_split: recording.eagerPageSplit };
    const created = new Set(recording.operations.map((one) => (one.op === 'create_guest_memfd' ? one.ret : -1)));
    for (const [fd, kind] of FOREIGN_FDS) {
      if (created.has(fd)) continue;
      openFd(fd, kind);
      this.openFds.add(fd);
    }
  }

  /** Gives back the fds; the VM itself is left to the garbage collector. */
  close(): void {
    for (const fd of this.openFds) closeFd(fd);
    this.openFds.clear();
  }

  /** The VM that exists now, for a report of its state. */
  get currentVm(): Vm | undefined {
    return this.vm;
  }

  listSlots(): string[] {
    return [...this.slots].map(([slot, { gpa, hva, end, flags }]) => {
      const size = end - hva;
      return `as ${slot >>> 16} id ${slot & 0xffff}: gpa ${gpa.toString(16)} size ${size.toString(16)} hva ${hva.toString(16)} flags ${flags}`;
    });
  }

  overlapsSlot(start: FieldValue, end: FieldValue): boolean {
    for (const slot of this.slots.values()) if (start < slot.end && end > slot.hva) return true;
    return false;
  }

  /** The host addresses that back a gfn now. */
  hvasOf(asId: number, gfn: number): bigint[] {
    const gpa = BigInt(gfn) * PAGE;
    return [...this.slots].flatMap(([slot, { gpa: base, hva, end }]) =>
      slot >>> 16 === asId && gpa >= base && gpa < base + (end - hva) ? [hva + (gpa - base)] : [],
    );
  }

  /** Whether any of [gpa, gpa + size) is backed by the 2M host region at `region` now. */
  gpaMeetsRegion(gpa: bigint, size: bigint, region: bigint): boolean {
    for (const { gpa: base, hva, end } of this.slots.values()) {
      const start = hva + (gpa - base);
      if (start < end && start + size > hva && start < region + REGION_2M && start + size > region) return true;
    }
    return false;
  }

  /** Performs one operation and returns what it gave. */
  perform(operation: RecordedOperation): Outcome {
    const wasOpen = this.vmOpen;
    if (this.inputs.allowed && this.vm !== undefined) {
      for (const gfn of recordedYields(operation)) {
        if (this.inputs.take('yield')) this.vm.yieldAt(gfn);
      }
    }
    for (const hva of this.failures.get(operation.i) ?? []) {
      if (this.inputs.take('inferred')) this.onHost((host) => host.failHugePage({ hva, length: REGION_2M }));
    }
    const returned = this.dispatch(operation);
    const vm = this.vm;
    const stillOpen = this.vmOpen;
    // KVM's counters of vCPU 0 are read before the second vCPU goes on: the recordings hold only those of the first.
    const vcpuStats = wasOpen && stillOpen && vm !== undefined ? vm.stats() : undefined;
    if (this.secondVcpuRuns) this.spin();
    let tables: number | undefined;
    let stats: Record<string, number> | undefined;
    if (vcpuStats !== undefined && vm !== undefined) {
      const vmStats = this.secondVcpuRuns ? vm.stats() : vcpuStats;
      tables = vmStats.tables;
      stats = {};
      for (const name of COMPARED_STATS) {
        const [file, counter] = name.split('.');
        const after = file === 'vm' ? vmStats : vcpuStats;
        const delta = (after[counter] ?? 0) - (this.statsBefore[counter] ?? 0);
        if (delta !== 0) stats[name] = delta;
      }
      this.statsBefore = vmStats;
    }
    if (vm !== undefined && vm.traceDropped > 0) throw new Error(`the trace dropped ${vm.traceDropped} records`);
    const trace = vm === undefined ? [] : (vm.trace() as readonly TracedEvent[]);
    if (operation.op === 'page_idle_set') for (const { hva } of agedPages(trace)) this.idle.add(hva);
    if (operation.op === 'page_idle_read' && this.inputs.allowed) returned.ret = this.idlePages(operation, trace);
    return {
      ret: returned.ret,
      errno: returned.errno,
      exits: returned.exits,
      leftGpa: returned.left?.gpa,
      leftSize: returned.left?.size,
      dirty: returned.dirty,
      trace,
      stats,
      leafs: () => (vm === undefined ? [] : tracedLeafs(vm)),
      tables: () => tables ?? vm?.stats().tables ?? 0,
    };
  }

  private attempt<T>(call: () => T): Attempt<T> {
    try {
      return { value: call() };
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      return { errno };
    }
  }

  /** Runs a call whose value does not matter: 0, or -1 with an errno. */
  private status(call: () => void): Returned {
    const { errno } = this.attempt(call);
    return errno === undefined ? { ret: 0 } : { ret: -1, errno };
  }

  private requireVm(operation: RecordedOperation): Vm {
    if (this.vm === undefined || !this.wasCreated) {
      throw new InputError(this.recording.file, operation.line, 1, `${operation.op} before any create_vm`);
    }
    return this.vm;
  }

  /** Does something to host memory now, and again in every VM created later. */
  private onHost(change: HostOperation): Returned {
    // Before the first VM and after the last one, the process goes on with its memory: a VM without slots stands in.
    if (this.vm === undefined || this.isGone) {
      this.vm = this.newVm(0);
      this.isGone = false;
      this.slots = new Map();
    }
    const { host } = this.vm;
    this.hostLog.push(change);
    return this.status(() => change(host));
  }

  private newVm(type: number): Vm {
    const vm = createVmSync({
      ...this.engine,
      type: type === 1 ? 'sw-protected' : 'default',
      kernel: 'linux-6.12',
      memory: this.memory,
      vcpus: 2,
      maxphyaddr: this.recording.maxphyaddr,
      nxHugePages: this.parameters.nx_huge_pages,
      eagerPageSplit: this.parameters.eager_page_split,
      mmioCaching: this.recording.mmioCaching,
      traceRecords: this.traceRecords,
    });
    vm.host.mmap({ kind: 'anon4k', hva: CODE_HVA, length: PAGE, prot: 7 });
    vm.host.access({ hva: CODE_HVA, length: PAGE, write: true });
    for (const change of this.hostLog) this.attempt(() => change(vm.host));
    vm.trace();
    return vm;
  }

  private dispatch(operation: RecordedOperation): Returned {
    const { args } = operation;
    const range = () => ({ hva: hex(args.hva), length: args.len as number });
    switch (operation.op) {
      case 'create_vm':
        this.vm = this.newVm(args.type as number);
        this.vmOpen = true;
        this.isGone = false;
        this.wasCreated = true;
        this.slots = new Map();
        this.statsBefore = this.vm.stats();
        return { ret: 0 };
      case 'destroy_vm':
        return this.destroyVm(operation);
      case 'set_memslot':
        return this.setMemslot(operation);
      case 'mmap': {
        const kind = args.kind as 'anon4k' | 'thp' | 'hugetlb2m' | 'hugetlb1g' | 'shmem';
        const hva = hex(args.hva);
        const length = args.size as number;
        const returned = this.onHost((host) => host.mmap({ kind, hva, length, prot: 3 }));
        if (kind === 'shmem' && returned.ret === 0) this.sharedRegions.push({ start: hva, end: hva + BigInt(length) });
        return returned;
      }
      case 'mmap_fixed':
        return this.onHost((host) => host.mmap({ kind: 'anon', ...range(), prot: 3 }));
      case 'munmap':
        return this.onHost((host) => host.munmap(range()));
      case 'mremap':
        return this.onHost((host) =>
          host.mremap({ old: hex(args.old), length: args.len as number, new: hex(args.new) }),
        );
      case 'mprotect':
        return this.onHost((host) => host.mprotect({ ...range(), prot: args.prot as number }));
      case 'madvise':
        return this.madvise(operation);
      case 'host_access':
        return this.onHost((host) => host.access({ ...range(), write: args.write !== 0, step: args.step as number }));
      case 'pre_fault_memory':
        return this.preFault(operation);
      case 'guest_access':
        return this.guestAccess(operation);
      case 'enable_cap': {
        const cap = CAPABILITIES[args.cap as string];
        if (cap === undefined) {
          throw new InputError(this.recording.file, operation.line, 1, `unknown capability '${args.cap}'`);
        }
        return this.status(() => this.requireVm(operation).enableCap({ cap, args: [args.arg0 as number] }));
      }
      case 'get_dirty_log': {
        const { value, errno } = this.attempt(() =>
          this.requireVm(operation).getDirtyLog({ slot: args.slot as number }),
        );
        if (value === undefined) return { ret: -1, errno, dirty: [] };
        return { ret: 0, dirty: value.map(({ first, count }) => [first, count]) };
      }
      case 'clear_dirty_log':
        return this.status(() =>
          this.requireVm(operation).clearDirtyLog({
            slot: args.slot as number,
            firstPage: args.first as number,
            numPages: args.num as number,
            bitmap: hex(args.pattern),
          }),
        );
      case 'write_param':
        return this.writeParameter(operation);
      case 'create_guest_memfd':
        return this.createGuestMemfd(operation);
      case 'set_attributes':
        return this.status(() =>
          this.requireVm(operation).setMemoryAttributes({
            address: hex(args.gpa),
            size: hex(args.size),
            attributes: hex(args.attributes),
            flags: args.flags as number,
          }),
        );
      case 'fallocate':
        return this.onFile(operation, (file) =>
          file.fallocate({ mode: args.mode_raw as number, offset: hex(args.off), length: hex(args.len) }),
        );
      case 'close_gmem': {
        const returned = this.onFile(operation, (file) => file.close());
        this.files.delete(args.gmem as number);
        if (!this.vmOpen && this.files.size === 0) this.isGone = true;
        return returned;
      }
      case 'enter_smm':
        return this.status(() => this.requireVm(operation).vcpus[0].enterSmm());
      case 'leave_smm':
        return this.status(() => this.requireVm(operation).vcpus[0].leaveSmm());
      case 'page_idle_set': {
        const { host } = this.requireVm(operation);
        const { value, errno } = this.attempt(() =>
          host.pageIdleSet({ hva: hex(args.hva), pages: args.pages as number }),
        );
        return value === undefined ? { ret: -1, errno } : { ret: value };
      }
      case 'page_idle_read':
        this.ageRecorded(operation, 'idle-scan');
        return { ret: args.pages as number };
      case 'khugepaged_run':
        return this.khugepaged(operation);
      case 'ksm_run':
        return this.ksm(operation);
      case 'sleep':
        this.recoverNx(operation);
        return { ret: 0 };
      case 'start_spinning_vcpu1':
        this.secondVcpuRuns = true;
        return { ret: 0 };
      case 'stop_vcpu1':
        this.requireVm(operation).vcpus[1].setInGuest(false);
        this.secondVcpuRuns = false;
        return { ret: 0 };
      default:
        throw new InputError(this.recording.file, operation.line, 1, `unknown operation '${operation.op}'`);
    }
  }

  private destroyVm(operation: RecordedOperation): Returned {
    const vm = this.requireVm(operation);
    if (this.files.size > 0 && countEvents(operation, 'flush_shadow_all') > 0 && this.inputs.take('silent-close')) {
      for (const file of this.files.values()) file.close();
      this.files.clear();
      // Nothing of it was recorded.
      vm.trace();
    }
    this.vmOpen = false;
    const returned = this.status(() => vm.destroy());
    this.isGone = this.files.size === 0;
    return returned;
  }

  private setMemslot(operation: RecordedOperation): Returned {
    const vm = this.requireVm(operation);
    const { args } = operation;
    const slot = (((args.as_id as number) << 16) | (args.slot as number)) >>> 0;
    const region = {
      slot,
      flags: (args.flags as number) >>> 0,
      guestPhysAddr: hex(args.gpa),
      memorySize: hex(args.size),
      userspaceAddr: hex(args.hva),
    };
    const returned = this.status(() => {
      if (args.v2 === 0) vm.setUserMemoryRegion(region);
      else {
        const guestMemfd = (args.gmem as number) >>> 0;
        vm.setUserMemoryRegion2({ ...region, guestMemfd, guestMemfdOffset: hex(args.gmem_off) });
      }
    });
    if (returned.ret === 0) {
      const { userspaceAddr: hva, memorySize: size, guestPhysAddr: gpa, flags } = region;
      if (size === 0n) this.slots.delete(slot);
      else this.slots.set(slot, { gpa, hva, end: hva + size, flags });
    }
    return returned;
  }

  private madvise(operation: RecordedOperation): Returned {
    const { args } = operation;
    const hva = hex(args.hva);
    const length = args.len as number;
    const advice = args.advice as Parameters<Vm['host']['madvise']>[0]['advice'];
    // Without a whole 2M in its range it fails whatever the memory is.
    const first = ((hva + REGION_2M - 1n) / REGION_2M) * REGION_2M;
    const holdsRegion = first + REGION_2M <= hva + BigInt(length);
    if (advice === 'COLLAPSE' && holdsRegion && this.isShared(hva) && this.inputs.take('collapse-result')) {
      const succeeds = operation.ret === 0;
      return this.onHost((host) => host.madvise({ hva, length, advice, succeeds }));
    }
    return this.onHost((host) => host.madvise({ hva, length, advice }));
  }

  private isShared(hva: bigint): boolean {
    return this.sharedRegions.some((region) => region.start <= hva && hva < region.end);
  }

  private preFault(operation: RecordedOperation): Returned {
    const vm = this.requireVm(operation);
    const { args } = operation;
    const request = { gpa: hex(args.gpa), size: hex(args.size), flags: args.flags as number };
    if (operation.errno === 'EINTR') this.inputs.take('alarm');
    try {
      const left = vm.vcpus[0].preFaultMemory(request);
      return { ret: 0, left: { gpa: BigInt(left.gpa), size: BigInt(left.size) } };
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === undefined) throw error;
      const { left } = error as { left?: LeftOver };
      return { ret: -1, errno, left: left ?? { gpa: request.gpa, size: request.size } };
    }
  }

  private guestAccess(operation: RecordedOperation): Returned {
    const vcpu = this.requireVm(operation).vcpus[0];
    const { args } = operation;
    const kind = args.kind as string;
    const exits: RawExit[] = [];
    /** Makes one access; returns whether the guest goes on. */
    const access = (gpa: bigint, how: 'read' | 'write' | 'exec', length: number): boolean => {
      const exit = vcpu.access({ gpa, kind: how });
      if (exit.reason === 'done') return true;
      if (exit.reason === 'mmio') {
        exits.push(['mmio', BigInt(exit.gpa).toString(16), how === 'write' ? 1 : 0, length]);
        return true;
      }
      if (exit.reason === 'memory_fault') {
        exits.push([
          'memory_fault',
          BigInt(exit.gpa).toString(16),
          BigInt(exit.size ?? 0).toString(16),
          Number(exit.flags ?? 0),
        ]);
      } else {
        const errno = typeof exit.errno === 'string' ? (ERRNO_NUMBERS[exit.errno] ?? 0) : Number(exit.errno ?? 0);
        exits.push(['err', errno, 0]);
      }
      return false;
    };
    const failed: Returned = { ret: -1, errno: 'EFAULT', exits };
    const isJunk = kind === 'exec' && operation.exits?.[0]?.[0] === 'mmio' && this.inputs.take('guest-junk');
    const wasAstray = this.guestIsAstray;
    this.guestIsAstray = isJunk && operation.exits?.at(-1)?.[0] !== 'hlt';
    // A guest that was stopped in the middle of executing data goes on there, and makes only the recorded accesses.
    if (!(isJunk && wasAstray) && !access(CODE_GPA, 'exec', 4)) return failed;
    if (kind !== 'nop') {
      if (kind !== 'read' && kind !== 'write' && kind !== 'exec') {
        throw new InputError(this.recording.file, operation.line, 1, `unknown kind of access '${kind}'`);
      }
      const stride = hex(args.stride);
      if (isJunk) {
        if (!wasAstray && !access(hex(args.gpa), kind, 4)) return failed;
        for (const [, gpa, isWrite, length] of operation.exits ?? []) {
          if (!access(hex(gpa), isWrite === 1 ? 'write' : 'read', length as number)) return failed;
        }
        return { ret: 0, exits };
      }
      for (let k = 0n; k < BigInt(args.count as number); k++) {
        if (!access(BigInt.asUintN(32, hex(args.gpa) + k * stride), kind, 4)) return failed;
      }
    }
    exits.push(['hlt']);
    return { ret: 0, exits };
  }

  private createGuestMemfd(operation: RecordedOperation): Returned {
    const vm = this.requireVm(operation);
    const { args, ret } = operation;
    const request = { size: hex(args.size), flags: args.flags as number };
    const { value, errno } = this.attempt(() => vm.createGuestMemfd(ret >= 0 ? { ...request, fd: ret } : request));
    if (value === undefined) return { ret: -1, errno };
    this.openFds.add(value.fd);
    this.files.set(value.fd, value);
    return { ret: value.fd };
  }

  private onFile(operation: RecordedOperation, call: (file: GuestMemfd) => void): Returned {
    const file = this.files.get(operation.args.gmem as number);
    if (file === undefined) return { ret: -1, errno: 'EBADF' };
    return this.status(() => call(file));
  }

  private writeParameter(operation: RecordedOperation): Returned {
    const path = operation.args.path as string;
    const value = operation.args.value as string;
    const name = path.slice(path.lastIndexOf('/') + 1);
    if (name === 'nx_huge_pages' || name === 'eager_page_split') {
      const enabled = ['Y', 'y', '1', 'on', 'force'].includes(value);
      this.parameters[name] = enabled;
      if (this.vmOpen) return this.status(() => this.vm!.writeParameter(name, enabled));
    } else if (name === 'clear_refs') {
      const kind = Number(value);
      if (kind === 1 || kind === 4) return this.onHost((host) => host.clearRefs(kind));
    } else if (name === 'lru_gen') {
      this.ageRecorded(operation, 'mglru');
    } else {
      this.recoverNx(operation);
    }
    return { ret: 0 };
  }

  /** The recovery thread runs when it likes: the recording says whether it did, the engine what it does. */
  private recoverNx(operation: RecordedOperation): void {
    if (countEvents(operation, 'zap_sp') > 0 && this.inputs.take('nx-recovery')) {
      this.requireVm(operation).recoverNxHugePages();
    }
  }

  private ageRecorded(operation: RecordedOperation, kind: 'idle-scan' | 'mglru'): void {
    if (!this.inputs.allowed) return;
    const { host } = this.requireVm(operation);
    for (const { start, end } of recordedHvaRanges(operation, 'kvm_age_hva')) {
      if (!this.overlapsSlot(start, end)) continue;
      this.inputs.take(kind);
      host.age({ hva: start, length: end - start });
    }
  }

  /** Reading the page_idle bitmap ages what is marked idle, and counts what was not young: that stays marked. */
  private idlePages(operation: RecordedOperation, trace: readonly TracedEvent[]): number {
    for (const { hva, isYoung } of agedPages(trace)) if (isYoung) this.idle.delete(hva);
    const start = hex(operation.args.hva);
    const end = start + BigInt(operation.args.pages as number) * PAGE;
    return [...this.idle].filter((hva) => hva >= start && hva < end).length;
  }

  private khugepaged(operation: RecordedOperation): Returned {
    for (const { start, end } of recordedHvaRanges(operation, 'kvm_unmap_hva_range')) {
      if (end - start !== REGION_2M || !this.overlapsSlot(start, end)) continue;
      if (!this.inputs.take('khugepaged')) break;
      const returned = this.onHost((host) => host.khugepaged({ hva: start, length: REGION_2M }));
      if (returned.ret !== 0) return returned;
    }
    return { ret: 0 };
  }

  private ksm(operation: RecordedOperation): Returned {
    for (const { start, end } of recordedHvaRanges(operation, 'kvm_unmap_hva_range')) {
      if (end - start !== PAGE || !this.overlapsSlot(start, end)) continue;
      if (!this.inputs.take('ksm')) break;
      const returned = this.onHost((host) => host.ksm({ hva: start, length: PAGE }));
      if (returned.ret !== 0) return returned;
    }
    return { ret: 0 };
  }

  /** Lets the second vCPU go on in its loop on the code page: out on a kick, in again, and fault the page in if it is gone. */
  private spin(): void {
    const vcpu = this.vm!.vcpus[1];
    vcpu.access({ gpa: CODE_GPA, kind: 'exec' });
    vcpu.setInGuest(true);
  }
}

/** The bytes of memslots that exist at once in a recording, at most. */
function memoryNeeded(recording: Recording): bigint {
  const sizes = new Map<string, bigint>();
  let most = 0n;
  let now = 0n;
  for (const { op, args, ret } of recording.operations) {
    if (op === 'create_vm') {
      sizes.clear();
      now = 0n;
    }
    if (op !== 'set_memslot' || ret !== 0) continue;
    const key = `${args.as_id}:${args.slot}`;
    const size = hex(args.size);
    now += size - (sizes.get(key) ?? 0n);
    sizes.set(key, size);
    if (now > most) most = now;
  }
  return most + MEMORY_MARGIN;
}

/** Records for the longest operation, twice over: an event takes two. */
function traceRecordsNeeded(recording: Recording): number {
  let most = 0;
  for (const { changeCount, events } of recording.operations) {
    let records = changeCount;
    for (const event of events) {
      records += 2 * (event[1] === 'rep' ? (event[2] as number) * (event[3] as unknown[]).length : 1);
    }
    most = Math.max(most, records);
  }
  return Math.min(Math.max(2 * most, TRACE_RECORDS_LEAST), TRACE_RECORDS_MOST);
}

/** The pages that age calls were made for, and whether any found them young. */
function agedPages(trace: readonly TracedEvent[]): { hva: bigint; isYoung: boolean }[] {
  const pages: { hva: bigint; isYoung: boolean }[] = [];
  for (const event of trace as readonly (TracedEvent & { start?: unknown; ret?: unknown })[]) {
    if (event.name === 'kvm_age_hva') pages.push({ hva: event.start as bigint, isYoung: false });
    else if (event.name === 'age_gfn_ret' && Number(event.ret) !== 0) pages[pages.length - 1].isYoung = true;
  }
  return pages;
}

/** The leafs by address space; within one, roots that hold any are one. */
function tracedLeafs(vm: Vm): TracedLeafs[] {
  const leafs = vm.leafs().map((run) => ({
    asId: run.asId,
    level: run.level,
    gfn: run.gfn,
    count: run.count,
    meaning: toMeaning(run.spte as TracedMeaning),
  }));
  return leafs.sort((a, b) => a.asId - b.asId || a.gfn - b.gfn);
}
