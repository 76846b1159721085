// Vm: one method per ioctl. Names, units, errors and decoding; every bit of simulated state is in the engine's memory.

import {
  COUNTER_NAMES,
  type CounterName,
  type EngineExports,
  GATE_CLOSE,
  GATE_HOST,
  GATE_OPERATION,
  OPTIONS,
  PAUSE_BUDGET,
  PAUSING_CALLS,
  type PausableExports,
  type PausingCall,
  STOP_POINTS,
  type StopPoint,
} from './engine/exports.ts';
import { layout } from './engine/layout.ts';
import {
  compileEngine,
  compileEngineSync,
  compileStepsSync,
  instantiate,
  instantiateOver,
  prepareSteps,
} from './engine/load.ts';
import {
  check,
  EngineFault,
  errorAfter,
  errorOf,
  flag,
  halvesOf,
  highHalf,
  integer,
  KvmError,
  lowHalf,
  object,
  oneOf,
  STATUS_SLOTS_FULL,
  type U64,
} from './errors.ts';
import { adoptFd, closeFd, fdKindFor, takeFd } from './fds.ts';
import {
  type GfnRangesResult,
  type KvmGfnRange,
  type KvmGfnRanges,
  rangeArguments,
  rangesArguments,
} from './gfn-range.ts';
import { GuestMemfd } from './guest-memfd.ts';
import { HostMemory } from './host-memory.ts';
import {
  type CheckFinding,
  decodeCheck,
  decodeLeafs,
  decodeSept,
  decodeWalk,
  type LeafRun,
  type WalkEntry,
} from './inspect.ts';
import { decodeLosses, type Loss } from './losses.ts';
import {
  type CreateVmOptions,
  FILTER_FORMS,
  KERNELS,
  memoryBytes,
  type ResolvedOptions,
  resolve,
  type VmType,
} from './options.ts';
import { decodeRmp, PAGE_SIZES, type PageSize, type RmpEntry } from './snp.ts';
import { type SeptRun, TdxModule, ZAP_POLICIES } from './tdx.ts';
import { decodeTrace, type SpteMeaning, spteMeaning, type TraceEvent } from './trace.ts';
import { ACCESS_IN_PIECES, Vcpu } from './vcpu.ts';

/** The engine's numbers (assembly/control.ts). */
const TYPE_NUMBERS: Readonly<Record<VmType, number>> = { default: 0, 'sw-protected': 1, snp: 4, tdx: 5 };

const PAGE = 4096;
/** No file backs that gpa: an answer, not an error. */
const ENOENT = -2;
/** Where each counter stands. */
const COUNTER_INDEX: Readonly<Record<string, number | undefined>> = Object.fromEntries(
  COUNTER_NAMES.map((name, index) => [name, index]),
);
/** Ranges that cross the boundary together: few enough to stay in the cache with their answers. */
const RANGES_AT_ONCE = 2048;

/** The methods whose exports have other names. */
const METHOD_NAMES: Readonly<Record<string, string>> = {
  vcpuRun: 'run',
  vcpuSetInGuest: 'setInGuest',
  vcpuFinishFault: 'finishFault',
  vcpuDropFault: 'dropFault',
  abiAccess: 'access',
  abiAccept: 'accept',
  abiBeginFault: 'beginFault',
  abiMapGpa: 'mapGpa',
  abiInitMemRegion: 'initMemRegion',
  abiSeamcall: 'seamcall',
  abiInjectStatus: 'injectStatus',
  tdxFinalize: 'finalize',
  tdxTerminateVm: 'terminate',
  vcpuBeginAccept: 'beginAccept',
  vcpuFinishAccept: 'finishAccept',
  vcpuBeginEnter: 'beginEnter',
  vcpuFinishEnter: 'finishEnter',
  countHypercallExit: 'mapGpa',
  abiSetAddressSpace: 'enterSmm',
  abiGmemCreate: 'createGuestMemfd',
  abiGmemFallocate: 'fallocate',
  abiGmemMemoryError: 'memoryError',
  abiEnableCap: 'enableCap',
  abiGetDirtyLogProtect: 'getDirtyLog',
  abiClearDirtyLog: 'clearDirtyLog',
  abiWriteNxHugePages: 'writeParameter',
  vmSetOption: 'writeParameter',
  abiRecoverNxHugePages: 'recoverNxHugePages',
  abiGmemSetAttributes: 'setMemoryAttributes',
  abiGmemHostAccess: 'hostAccess',
  abiPvalidate: 'pvalidate',
  abiRmpFault: 'rmpFault',
  pscBegin: 'pageStateChange',
  pscBeginMsr: 'pageStateChange',
  pscComplete: 'completePageStateChange',
  abiZapGfnRange: 'zapGfnRange',
  vmFlushRemoteTlbs: 'flushRemoteTlbs',
};

/**
 * Makes a VM.
 * @throws {TypeError | RangeError} for options that make no sense, naming the option, its value and the limit
 * @example
 * const vm = await createVm({ type: 'tdx', memory: 64 * 2 ** 30 });
 */
export async function createVm(options: CreateVmOptions): Promise<Vm> {
  const resolved = resolve(options);
  const [module, steps] = await Promise.all([
    compileEngine(options.wasm, resolved.debug),
    prepareSteps(options.stepsWasm, options.wasm !== undefined, resolved.debug),
  ]);
  return new Vm(resolved, module, () => steps ?? compileStepsSync(undefined));
}

/** As createVm(), at once. In a browser the engine must be at hand: after one createVm(), or as `wasm`. */
export function createVmSync(options: CreateVmOptions): Vm {
  const resolved = resolve(options);
  const module = compileEngineSync(options.wasm, resolved.debug);
  const steps = options.stepsWasm === undefined ? undefined : compileStepsSync(options.stepsWasm);
  return new Vm(resolved, module, () => steps ?? compileStepsSync(undefined));
}

export interface MemoryRegion {
  /** Address space << 16 | slot id. */
  slot: number;
  /** LOG_DIRTY_PAGES 1, READONLY 2; of version 2 also GUEST_MEMFD 4. */
  flags?: number;
  guestPhysAddr: U64;
  /** Bytes; 0 deletes the slot. */
  memorySize: U64;
  userspaceAddr: U64;
}
export interface MemoryRegion2 extends MemoryRegion {
  /** Descriptor of a guest_memfd. */
  guestMemfd?: number;
  guestMemfdOffset?: U64;
}

/** Why an operation in pieces stopped here. */
export interface Pause {
  /** 'budget', or the stop point that was asked for. */
  at: 'budget' | StopPoint;
  /** Where it goes on; only of a budget. */
  nextGfn?: number;
}

/** Thrown inside when an operation pauses; steps() catches it. */
class PauseSignal {
  readonly call: PausingCall;
  readonly finish: (status: number) => unknown;

  constructor(call: PausingCall, finish: (status: number) => unknown) {
    this.call = call;
    this.finish = finish;
  }
}

export interface Losses {
  /** Private pages whose content was destroyed. */
  privatePagesLost: number;
  /** Pages that the guest had accepted and must accept again. */
  pagesToAccept: number;
  /** gfns zapped that no request asked for. */
  gfnsZappedOutside: number;
  /** Leaves that map a private gfn shared, at this moment. */
  staleSharedLeaves: number;
}

/** vm.losses(): the totals, and which pages it were that nobody asked to lose. */
export interface LossReport extends Losses {
  /** In order; at most 4,096, runs that go on are one. */
  records: readonly Loss[];
  /** Records that found the table full. */
  recordsDropped: number;
}

const SNAPSHOT_MAGIC = 0x50535045;
const SNAPSHOT_VERSION = 1;
const SNAPSHOT_HEADER_WORDS = 8;

export class Vm {
  readonly options: ResolvedOptions;
  readonly vcpus: readonly Vcpu[];
  readonly host: HostMemory;
  /** The TDX module beneath a TD. @throws {KvmError} EINVAL where used on another VM */
  readonly tdx: TdxModule;
  readonly #wasm: EngineExports;
  /** The build that can pause, over the same memory; made when it is first needed. */
  #pausable: PausableExports | undefined;
  readonly #compileSteps: () => WebAssembly.Module;
  readonly #memory: WebAssembly.Memory;
  readonly #words: Uint32Array;
  readonly #doubles: Float64Array;
  readonly #at: Readonly<Record<'result0' | 'counters' | 'io', number>>;
  // The exports object is a dictionary: what small operations call is kept in properties of its own.
  readonly #gate: EngineExports['gate'];
  readonly #gfnRangeCall: EngineExports['abiGfnRange'];
  readonly #accessCall: EngineExports['abiAccess'];
  readonly #attributesCall: EngineExports['abiSetMemoryAttributes'];
  readonly #spteCall: EngineExports['inspectSpte'];
  readonly #ownRoot: 'direct' | 'mirror';
  #fault: EngineFault | undefined;
  #stepping = false;
  /** How often the state was replaced: an operation in pieces of the state before is gone. */
  #restores = 0;

  /** @internal Use createVm(). */
  constructor(options: ResolvedOptions, module: WebAssembly.Module, compileSteps: () => WebAssembly.Module) {
    this.options = options;
    this.#ownRoot = options.type === 'tdx' ? 'mirror' : 'direct';
    const bytes = memoryBytes(options);
    const { exports, memory } = instantiate(module, bytes, () => this.#onPause());
    this.#wasm = exports;
    // The debug build can pause itself.
    if ('asyncify_get_state' in exports) this.#pausable = exports as PausableExports;
    this.#compileSteps = compileSteps;
    this.#memory = memory;
    this.#words = new Uint32Array(memory.buffer);
    this.#doubles = new Float64Array(memory.buffer);
    this.#at = {
      result0: layout.CONTROL_AT_RESULT0 >>> 3,
      counters: layout.COUNTERS_BASE >>> 2,
      io: layout.IO_BASE,
    };
    this.#gate = exports.gate;
    this.#gfnRangeCall = exports.abiGfnRange;
    this.#accessCall = exports.abiAccess;
    this.#attributesCall = exports.abiSetMemoryAttributes;
    this.#spteCall = exports.inspectSpte;
    const status = exports.vmCreate(
      memory.buffer.byteLength,
      TYPE_NUMBERS[options.type],
      KERNELS.indexOf(options.kernel),
      FILTER_FORMS.indexOf(options.filterForm),
      options.maxphyaddr,
      options.gpaw,
      options.vcpus,
      Number(options.memory / BigInt(PAGE)),
      options.traceRecords,
    );
    check(status, 'createVm', { memory: options.memory });
    exports.vmSetOption(OPTIONS.hugepageGuard, options.hugepageGuard ? 1 : 0);
    exports.vmSetOption(OPTIONS.septVeDisable, options.septVeDisable ? 1 : 0);
    exports.vmSetOption(OPTIONS.rmpChecks, options.rmpChecks ? 1 : 0);
    exports.vmSetOption(OPTIONS.gmemFilterByTarget, options.gmemInvalidateFilter === 'by-target' ? 1 : 0);
    exports.vmSetOption(OPTIONS.quirkSlotZapAll, options.quirks.slotZapAll ? 1 : 0);
    exports.vmSetOption(OPTIONS.nxHugePages, options.nxHugePages ? 1 : 0);
    exports.vmSetOption(OPTIONS.eagerPageSplit, options.eagerPageSplit ? 1 : 0);
    exports.vmSetOption(OPTIONS.mmioCaching, options.mmioCaching ? 1 : 0);
    if (options.td !== undefined) {
      exports.vmSetOption(OPTIONS.tdBuild, options.td.build ? 1 : 0);
      exports.vmSetOption(OPTIONS.privateHugePages, options.td.hugePages ? 1 : 0);
      exports.vmSetOption(OPTIONS.zapPolicy, ZAP_POLICIES.indexOf(options.td.zap));
      exports.vmSetOption(OPTIONS.trackBatched, options.td.track === 'batched' ? 1 : 0);
      exports.vmSetOption(OPTIONS.zeroStepLocalRetry, options.td.localRetry ? 1 : 0);
      exports.vmSetOption(OPTIONS.packages, options.td.packages);
    }
    exports.vmSetOption(OPTIONS.trace, options.traceRecords > 0 ? 1 : 0);
    this.vcpus = Array.from({ length: options.vcpus }, (_, index) => new Vcpu(this, index));
    this.host = new HostMemory(this);
    this.tdx = new TdxModule(this);
  }

  // --- Calling the engine ----------------------------------------------------------------------------------------------

  #onPause(): void {
    const wasm = this.#pausable;
    if (wasm === undefined) throw new Error('a pause outside steps()');
    if (wasm.asyncify_get_state() === 2) wasm.asyncify_stop_rewind();
    else wasm.asyncify_start_unwind(layout.PAUSE_BASE);
  }

  #pausableEngine(): PausableExports {
    if (this.#pausable !== undefined) return this.#pausable;
    const exports = instantiateOver(this.#compileSteps(), this.#memory, () => this.#onPause()) as PausableExports;
    if (!('asyncify_get_state' in exports)) {
      throw new Error('stepsWasm is not the build that can pause of the same engine');
    }
    this.#pausable = exports;
    return exports;
  }

  /** Runs `call`; anything it throws is our fault and ends the VM. */
  #run(call: () => number): number {
    if (this.#fault !== undefined) throw this.#fault;
    try {
      return call();
    } catch (error) {
      throw this.#failed(error);
    }
  }
  #failed(error: unknown): EngineFault {
    this.#fault = new EngineFault(`the engine failed: ${(error as Error).message}; this VM can no longer be used`);
    return this.#fault;
  }

  /** Throws unless the VM lives and `gate` is open. */
  #enter(gate: number, method: string): void {
    if (this.#fault !== undefined) throw this.#fault;
    const status = this.#gate(gate);
    if (status < 0) throw errorOf(status, method, {});
  }

  /**
   * @internal Calls an export that changes state, and turns its status into a result.
   * `gate` says what may pass while an operation is paused; `method` names the call in errors.
   */
  operate<T>(
    call: keyof EngineExports,
    args: readonly number[],
    gate: number,
    finish: (status: number) => T,
    method: string = METHOD_NAMES[call] ?? call,
  ): T {
    this.#enter(gate, method);
    const pausing = this.#stepping ? (PAUSING_CALLS as readonly string[]).indexOf(call) : -1;
    if (pausing < 0) return finish(this.#run(() => (this.#wasm[call] as (...values: number[]) => number)(...args)));
    const wasm = this.#pausableEngine();
    this.#words[layout.CONTROL_AT_OPERATION >>> 2] = pausing;
    const result = this.#run(() => (wasm[call] as (...values: number[]) => number)(...args));
    if (wasm.asyncify_get_state() === 1) {
      wasm.asyncify_stop_unwind();
      throw new PauseSignal(call as PausingCall, finish);
    }
    return finish(result);
  }

  /** @internal A result beside the status. */
  result(index: number): number {
    return this.#doubles[this.#at.result0 + index];
  }

  #resume(): { paused: true } | { paused: false; status: number } {
    const wasm = this.#pausableEngine();
    const call = PAUSING_CALLS[this.#words[layout.CONTROL_AT_OPERATION >>> 2]];
    wasm.asyncify_start_rewind(layout.PAUSE_BASE);
    const status = this.#run(() => (wasm[call] as () => number)());
    if (wasm.asyncify_get_state() !== 1) return { paused: false, status };
    wasm.asyncify_stop_unwind();
    return { paused: true };
  }

  #pause(): Pause {
    const point = this.#words[layout.CONTROL_AT_PAUSED >>> 2];
    if (point === PAUSE_BUDGET) return { at: 'budget', nextGfn: this.#doubles[layout.CONTROL_AT_PAUSE_GFN >>> 3] };
    const name = (Object.keys(STOP_POINTS) as StopPoint[]).find((key) => STOP_POINTS[key] === point);
    return { at: name as StopPoint };
  }

  /**
   * Runs one operation in pieces: of at most `budget` visited entries each, and up to each of the `stopAt` points. A
   * piece stops where KVM could yield, but is no yield: nothing is flushed or walked again, and the pieces together equal
   * one run. Between pieces the VM can be inspected and a snapshot taken; while it is stopped outside mmu_lock, vCPUs
   * can fault. The generator's value is the call's.
   * @throws {RangeError} if the budget is not at least 1
   * @throws {KvmError} EINVAL if restore() replaced the state between two pieces
   * @example
   * const pieces = vm.steps({ budget: 1000 }, () => vm.unmapGfnRange({ slot: 0, start: 0, end: 512 }));
   * for (let piece = pieces.next(); !piece.done; piece = pieces.next()) console.log(piece.value.nextGfn);
   */
  *steps<T>(options: { budget?: number; stopAt?: readonly StopPoint[] }, call: () => T): Generator<Pause, T> {
    object(options, 'options');
    if (typeof call !== 'function') throw new TypeError(`call is ${String(call)}: it must be a function`);
    const budget = options.budget ?? Number.POSITIVE_INFINITY;
    if (typeof budget !== 'number' || !(budget >= 1))
      throw new RangeError(`budget is ${budget}: it must be at least 1`);
    let mask = 0;
    for (const point of options.stopAt ?? []) {
      mask |= STOP_POINTS[oneOf(point, 'stopAt', Object.keys(STOP_POINTS) as StopPoint[])];
    }
    const setBudget = (value: number, stops: number) => {
      this.#doubles[layout.CONTROL_AT_BUDGET >>> 3] = value;
      this.#words[layout.CONTROL_AT_STOP_MASK >>> 2] = stops;
    };
    const restores = this.#restores;
    let signal: PauseSignal | undefined;
    this.#stepping = true;
    setBudget(budget, mask);
    try {
      try {
        return call();
      } catch (thrown) {
        if (!(thrown instanceof PauseSignal)) throw thrown;
        signal = thrown;
      } finally {
        this.#stepping = false;
      }
      for (;;) {
        yield this.#pause();
        if (this.#restores !== restores) {
          throw new KvmError('EINVAL', 'steps', 'steps(): EINVAL: restore() has replaced the operation');
        }
        setBudget(budget, mask);
        const piece = this.#resume();
        if (!piece.paused) return signal.finish(piece.status) as T;
      }
    } finally {
      // Left early, the operation is finished in one go: nothing stays half done.
      if (this.#restores === restores) {
        setBudget(Number.POSITIVE_INFINITY, 0);
        if (signal !== undefined && this.paused) this.#resume();
        this.#forgetOperation();
      }
    }
  }

  /** Whether an operation is paused between two pieces. */
  get paused(): boolean {
    return this.#words[layout.CONTROL_AT_PAUSED >>> 2] !== 0;
  }

  /**
   * Finishes an operation that was paused when a snapshot was taken which this VM restored. Returns its status: 0 or
   * above where the call succeeded.
   * @throws {KvmError} EINVAL if nothing is paused
   */
  finishPaused(): number {
    if (!this.paused) throw new KvmError('EINVAL', 'finishPaused', 'finishPaused(): EINVAL: no operation is paused');
    this.#doubles[layout.CONTROL_AT_BUDGET >>> 3] = Number.POSITIVE_INFINITY;
    this.#words[layout.CONTROL_AT_STOP_MASK >>> 2] = 0;
    const piece = this.#resume();
    this.#forgetOperation();
    return piece.paused ? 0 : check(piece.status, 'finishPaused', {});
  }

  /** Clears what only said where an operation was: what remains is what one run leaves. */
  #forgetOperation(): void {
    this.#words[layout.CONTROL_AT_OPERATION >>> 2] = 0;
    this.#doubles[layout.CONTROL_AT_PAUSE_GFN >>> 3] = 0;
  }

  /**
   * The next walk that may yield does so once when it reaches the entry of `gfn`: it flushes what it owes and walks down
   * from the root again.
   */
  yieldAt(gfn: number): void {
    integer(gfn, 'gfn', 0, 2 ** 52 - 1);
    this.#doubles[layout.CONTROL_AT_YIELD_GFN >>> 3] = gfn;
    this.#words[layout.CONTROL_AT_YIELD_ARMED >>> 2] = 1;
  }

  // --- Memslots, attributes, guest_memfd -------------------------------------------------------------------------------

  /**
   * KVM_SET_USER_MEMORY_REGION: creates, deletes (size 0), moves or re-flags a memslot.
   * @throws {KvmError} EINVAL or EEXIST, in the kernel's order of checks
   */
  setUserMemoryRegion(args: MemoryRegion): void {
    this.#setRegion(1, 'setUserMemoryRegion', args);
  }

  /** KVM_SET_USER_MEMORY_REGION2. @throws {KvmError} as version 1, and EBADF if the descriptor is not open */
  setUserMemoryRegion2(args: MemoryRegion2): void {
    this.#setRegion(2, 'setUserMemoryRegion2', args);
  }

  #setRegion(version: number, call: string, args: MemoryRegion2): void {
    object(args, 'args');
    const slot = integer(args.slot, 'slot', 0, 2 ** 32 - 1);
    const flags = integer(args.flags ?? 0, 'flags', 0, 2 ** 32 - 1);
    const gpa = halvesOf(args.guestPhysAddr, 'guestPhysAddr');
    const size = halvesOf(args.memorySize, 'memorySize');
    const hva = halvesOf(args.userspaceAddr, 'userspaceAddr');
    const fd = version === 2 ? integer(args.guestMemfd ?? -1, 'guestMemfd', -(2 ** 31), 2 ** 32 - 1) | 0 : -1;
    const offset = halvesOf((version === 2 ? args.guestMemfdOffset : 0) ?? 0, 'guestMemfdOffset');
    const kind = fd < 0 ? 0 : fdKindFor(this, fd);
    const values = [version, slot, flags, ...gpa, ...size, ...hva, fd, kind, ...offset];
    this.operate(
      'abiSetMemoryRegion',
      values,
      GATE_OPERATION,
      (status) => {
        if (status === STATUS_SLOTS_FULL) {
          throw new KvmError(
            'ENOMEM',
            call,
            `${call}(slot ${slot}, memorySize 0x${args.memorySize.toString(16)}): ENOMEM: all slots together may hold 0x${this.options.memory.toString(16)} bytes, the \`memory\` of createVm()`,
          );
        }
        check(status, call, { ...args });
      },
      call,
    );
  }

  /**
   * KVM_SET_MEMORY_ATTRIBUTES: makes [address, address + size) bytes private (8) or shared (0).
   * @throws {KvmError} EINVAL: flags, unknown attributes, size 0, wrap, misaligned
   */
  setMemoryAttributes(args: { address: U64; size: U64; attributes: U64; flags?: U64 }): void {
    object(args, 'args');
    const { address, size, attributes } = args;
    const flags = args.flags ?? 0;
    const addressLow = lowHalf(address, 'address');
    const sizeLow = lowHalf(size, 'size');
    const attributesLow = lowHalf(attributes, 'attributes');
    const flagsLow = lowHalf(flags, 'flags');
    const addressHigh = highHalf(address);
    const sizeHigh = highHalf(size);
    const attributesHigh = highHalf(attributes);
    const flagsHigh = highHalf(flags);
    if (this.#stepping) {
      const low = [addressLow, addressHigh, sizeLow, sizeHigh];
      this.operate(
        'abiSetMemoryAttributes',
        [...low, attributesLow, attributesHigh, flagsLow, flagsHigh],
        GATE_OPERATION,
        (status) => void check(status, 'setMemoryAttributes', { ...args }),
        'setMemoryAttributes',
      );
      return;
    }
    if (this.#fault !== undefined) throw this.#fault;
    let status: number;
    try {
      status = this.#attributesCall(
        addressLow,
        addressHigh,
        sizeLow,
        sizeHigh,
        attributesLow,
        attributesHigh,
        flagsLow,
        flagsHigh,
      );
    } catch (error) {
      throw this.#failed(error);
    }
    if (status < 0) throw errorOf(status, 'setMemoryAttributes', { ...args });
  }

  /**
   * KVM_CREATE_GUEST_MEMFD of `size` bytes. `fd` forces the descriptor's number, as a recording needs. With `folioSize`
   * '2M' it allocates 2M folios where one fits, which no kernel of the profiles does; default '4K', of a TD with
   * `td.hugePages` '2M'.
   * @throws {KvmError} EINVAL: flags, size 0, negative or misaligned
   */
  createGuestMemfd(args: { size: U64; flags?: U64; fd?: number; folioSize?: PageSize }): GuestMemfd {
    object(args, 'args');
    const size = halvesOf(args.size, 'size');
    const flags = halvesOf(args.flags ?? 0, 'flags');
    const usual = this.options.td?.hugePages ? '2M' : '4K';
    const order = oneOf(args.folioSize ?? usual, 'folioSize', PAGE_SIZES) === '2M' ? 9 : 0;
    const fd = takeFd(this, args.fd);
    try {
      return this.operate('abiGmemCreate', [...size, ...flags, fd, order], GATE_OPERATION, (status) => {
        check(status, 'createGuestMemfd', { ...args });
        return new GuestMemfd(this, fd, this.result(0), BigInt(args.size));
      });
    } catch (error) {
      closeFd(fd);
      throw error;
    }
  }

  /** The guest_memfd files that are open, as a restored VM finds them. */
  get guestMemfds(): readonly GuestMemfd[] {
    const files: GuestMemfd[] = [];
    const count = this.#words[layout.CONTROL_AT_GMEM_HIGH_WATER >>> 2];
    for (let index = 0; index < count; index++) {
      const at = (layout.GMEM_BASE + index * layout.GMEM_BYTES) >>> 2;
      if (this.#words[at] === 0 || this.#words[at + 1] === 0) continue;
      const size = BigInt(this.#words[at + 4]) + (BigInt(this.#words[at + 5]) << 32n);
      files.push(new GuestMemfd(this, this.#words[at + 2], this.#words[at + 3], size));
    }
    return files;
  }

  /** @internal */
  gmemFallocate(fd: number, serial: number, mode: number, offset: U64, length: U64): void {
    const values = [fd, serial, mode, ...halvesOf(offset, 'offset'), ...halvesOf(length, 'length')];
    this.operate('abiGmemFallocate', values, GATE_CLOSE, (status) => {
      check(status, 'fallocate', { fd, mode, offset, length });
    });
  }
  /** @internal */
  gmemMemoryError(fd: number, serial: number, pageIndex: number): void {
    this.operate('abiGmemMemoryError', [fd, serial, pageIndex], GATE_CLOSE, (status) => {
      check(status, 'memoryError', { fd, pageIndex });
    });
  }
  /** @internal */
  gmemSetAttributes(fd: number, serial: number, args: { offset: U64; size: U64; attributes: U64; flags?: U64 }): void {
    const values = [
      fd,
      serial,
      ...halvesOf(args.offset, 'offset'),
      ...halvesOf(args.size, 'size'),
      ...halvesOf(args.attributes, 'attributes'),
      ...halvesOf(args.flags ?? 0, 'flags'),
    ];
    this.operate('abiGmemSetAttributes', values, GATE_OPERATION, (status) => {
      if (status >= 0) return;
      const error = errorOf(status, 'setMemoryAttributes', { fd, ...args });
      if (error.code === 'EAGAIN') error.errorOffset = BigInt(this.result(0)) * 4096n;
      throw error;
    });
  }
  /** @internal */
  gmemHostAccess(fd: number, serial: number, offset: U64, length: U64): void {
    const values = [fd, serial, ...halvesOf(offset, 'offset'), ...halvesOf(length, 'length')];
    this.operate('abiGmemHostAccess', values, GATE_HOST, (status) => {
      check(status, 'hostAccess', { fd, offset, length });
    });
  }
  /** @internal */
  gmemPin(fd: number, serial: number, pageIndex: number, isPinned: boolean): void {
    const method = isPinned ? 'elevateRefcount' : 'dropRefcount';
    this.operate(
      'abiGmemPin',
      [fd, serial, pageIndex, isPinned ? 1 : 0],
      GATE_HOST,
      (status) => void check(status, method, { fd, pageIndex }),
      method,
    );
  }
  /** @internal */
  gmemRmp(fd: number, serial: number, pageIndex: number): RmpEntry {
    check(
      this.#run(() => this.#wasm.inspectRmp(fd, serial, pageIndex)),
      'rmp',
      { fd, pageIndex },
    );
    return decodeRmp((index) => this.result(index));
  }
  /** @internal */
  gmemClose(fd: number, serial: number): void {
    this.operate(
      'abiGmemRelease',
      [fd, serial],
      GATE_CLOSE,
      (status) => {
        check(status, 'close', { fd });
        closeFd(fd);
      },
      'close',
    );
  }

  // --- Capabilities, parameters, dirty log -----------------------------------------------------------------------------

  /**
   * KVM_ENABLE_CAP: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (168), KVM_CAP_EXIT_HYPERCALL (201) and KVM_CAP_DISABLE_QUIRKS2 (213).
   * @throws {KvmError} EINVAL for another capability, flags, or an argument that it does not allow
   */
  enableCap(args: { cap: number; flags?: U64; args?: readonly U64[] }): void {
    object(args, 'args');
    const cap = integer(args.cap, 'cap', 0, 2 ** 32 - 1);
    const values = [cap, ...halvesOf(args.flags ?? 0, 'flags'), ...halvesOf(args.args?.[0] ?? 0, 'args[0]')];
    this.operate('abiEnableCap', values, GATE_OPERATION, (status) => void check(status, 'enableCap', { cap }));
  }

  /**
   * KVM_GET_DIRTY_LOG: runs of dirty pages, as page offsets in the slot. Without manual protection it also takes the bits
   * and write-protects the pages again.
   * @throws {KvmError} EINVAL (no such id), ENOENT (not logged)
   */
  getDirtyLog(args: { slot: number }): { first: number; count: number }[] {
    object(args, 'args');
    const slot = integer(args.slot, 'slot', 0, 2 ** 32 - 1);
    const wasm = this.#wasm;
    const gate = this.#run(() => wasm.gate(GATE_OPERATION));
    if (gate < 0) throw errorOf(gate, 'getDirtyLog', {});
    check(
      this.#run(() => wasm.abiGetDirtyLogCheck(slot)),
      'getDirtyLog',
      { slot },
    );
    const runs: { first: number; count: number }[] = [];
    const capacity = layout.IO_BYTES / 16;
    for (let from = 0; ; ) {
      const count = this.#run(() => wasm.abiDirtyRuns(slot, from));
      const at = this.#at.io >>> 3;
      for (let index = 0; index < count; index++) {
        runs.push({ first: this.#doubles[at + index * 2], count: this.#doubles[at + index * 2 + 1] });
      }
      if (count < capacity) break;
      const last = runs[runs.length - 1];
      from = last.first + last.count;
    }
    return this.operate('abiGetDirtyLogProtect', [slot], GATE_OPERATION, (status) => {
      check(status, 'getDirtyLog', { slot });
      return runs;
    });
  }

  /**
   * KVM_CLEAR_DIRTY_LOG. `bitmap`: bit k is page firstPage + k; a bigint is a 64-bit pattern that repeats.
   * @throws {KvmError} EINVAL (alignment, beyond the slot), ENOENT (not logged)
   */
  clearDirtyLog(args: { slot: number; firstPage: U64; numPages: number; bitmap: Uint8Array | bigint }): void {
    object(args, 'args');
    const slot = integer(args.slot, 'slot', 0, 2 ** 32 - 1);
    const first = halvesOf(args.firstPage, 'firstPage');
    const numPages = integer(args.numPages, 'numPages', 0, 2 ** 32 - 1);
    const { bitmap } = args;
    const wasm = this.#wasm;
    const start = layout.BITMAP_BASE;
    const capacity = layout.BITMAP_BYTES;
    let bytes = 8;
    let halves: [number, number] | undefined;
    if (typeof bitmap === 'bigint') {
      halves = halvesOf(bitmap, 'bitmap');
    } else if (bitmap instanceof Uint8Array) {
      bytes = Math.max(Math.ceil(numPages / 64) * 8, 8);
      if (bytes > capacity) {
        throw new RangeError(`numPages is ${numPages}: one bitmap holds at most ${capacity * 8} pages`);
      }
      if (bitmap.length < Math.ceil(numPages / 8)) {
        throw new RangeError(`bitmap has ${bitmap.length} bytes: ${numPages} pages need ${Math.ceil(numPages / 8)}`);
      }
    } else {
      throw new TypeError('bitmap must be a Uint8Array or a bigint');
    }
    // A paused operation may still read its own bitmap.
    const gate = this.#run(() => wasm.gate(GATE_OPERATION));
    if (gate < 0) throw errorOf(gate, 'clearDirtyLog', {});
    if (halves !== undefined) this.#words.set(halves, start >>> 2);
    else {
      const target = this.#bytes({ start, bytes });
      target.fill(0);
      target.set((bitmap as Uint8Array).subarray(0, bytes));
    }
    this.operate('abiClearDirtyLog', [slot, ...first, numPages, bytes], GATE_OPERATION, (status) => {
      check(status, 'clearDirtyLog', { slot, firstPage: args.firstPage, numPages });
    });
  }

  /** Writes a module parameter while the VM runs: nx_huge_pages zaps all roots, eager_page_split does nothing by itself. */
  writeParameter(name: 'nx_huge_pages' | 'eager_page_split', value: boolean): void {
    oneOf(name, 'name', ['nx_huge_pages', 'eager_page_split'] as const);
    const on = flag(value, 'value', false) ? 1 : 0;
    const finish = (status: number) => void check(status, 'writeParameter', { name, value });
    if (name === 'nx_huge_pages') this.operate('abiWriteNxHugePages', [on], GATE_OPERATION, finish);
    else this.operate('vmSetOption', [OPTIONS.eagerPageSplit, on], GATE_OPERATION, finish);
  }

  /** One run of the NX recovery worker over at most `limit` tables (default: all). @returns the tables it zapped */
  recoverNxHugePages(limit = 2 ** 32 - 1): number {
    integer(limit, 'limit', 0, 2 ** 32 - 1);
    return this.operate('abiRecoverNxHugePages', [limit], GATE_OPERATION, (status) =>
      check(status, 'recoverNxHugePages', { limit }),
    );
  }

  /** Closes the VM. Open guest_memfd files hold it: it then dies with the last of them. */
  destroy(): void {
    this.operate('abiDestroy', [], GATE_CLOSE, (status) => void check(status, 'destroy', {}), 'destroy');
  }

  // --- struct kvm_gfn_range --------------------------------------------------------------------------------------------

  #gfnRange(call: number, method: string, range: KvmGfnRange): boolean {
    const { asId, slot, start, end, argLow, argHigh, selector } = rangeArguments(range);
    if (this.#stepping || this.#fault !== undefined) return this.#gfnRangeInPieces(call, method, range);
    let status: number;
    try {
      status = this.#gfnRangeCall(call, asId, slot, start, end, argLow, argHigh, selector);
    } catch (error) {
      throw this.#failed(error);
    }
    if (status < 0) throw errorOf(status, method, { ...range });
    return status === 1;
  }
  /** The same by operate(), apart: V8 inlines what is short. */
  #gfnRangeInPieces(call: number, method: string, range: KvmGfnRange): boolean {
    const { asId, slot, start, end, argLow, argHigh, selector } = rangeArguments(range);
    const values = [call, asId, slot, start, end, argLow, argHigh, selector];
    const finish = (status: number) => check(status, method, { ...range }) === 1;
    return this.operate('abiGfnRange', values, GATE_OPERATION, finish, method);
  }

  #gfnRanges(call: number, method: string, ranges: KvmGfnRanges): GfnRangesResult {
    const { asId, slot, end: npages, argLow, argHigh, selector } = rangesArguments(ranges);
    const { starts, look } = ranges;
    const root = oneOf(ranges.root ?? this.#ownRoot, 'root', ['direct', 'mirror'] as const);
    const looks = look === undefined ? 0 : root === 'mirror' ? 2 : 1;
    this.#enter(GATE_OPERATION, method);
    if (this.#stepping) {
      throw new KvmError(
        'EINVAL',
        method,
        `${method}(): EINVAL: many ranges are many operations: take them one by one`,
      );
    }
    const wasm = this.#wasm;
    const io = this.#at.io >>> 3;
    const doubles = this.#doubles;
    const put = (from: number, to: number) => {
      const whole = from === 0 && to === starts.length;
      doubles.set(whole ? starts : starts.subarray(from, to), io);
      if (look !== undefined) doubles.set(whole ? look : look.subarray(from, to), io + to - from);
      return to - from;
    };
    // All are checked before the first is done.
    const isOnePiece = starts.length <= RANGES_AT_ONCE;
    for (let from = 0; from < starts.length || from === 0; from += RANGES_AT_ONCE) {
      const count = put(from, Math.min(from + RANGES_AT_ONCE, starts.length));
      const good = this.#run(() => wasm.vmCheckGfnRanges(asId, slot, count, npages, selector, looks));
      check(good, method, { slot, asId, npages, attrFilter: ranges.attrFilter });
      if (good < count) {
        const start = integer(starts[from + good], `starts[${from + good}]`, 0, 2 ** 52);
        throw errorOf(-22, method, { slot, asId, start, end: start + npages });
      }
      if (look !== undefined && good < 2 * count) {
        const at = from + good - count;
        integer(look[at], `look[${at}]`, 0, 2 ** 52 - 1);
      }
    }
    const leafs = ranges.into?.leafs ?? new Float64Array(starts.length);
    const none = look === undefined;
    const sptes = (none ? undefined : ranges.into?.sptes) ?? new Uint32Array(none ? 0 : starts.length);
    let any = false;
    for (let from = 0; from < starts.length; from += RANGES_AT_ONCE) {
      const to = Math.min(from + RANGES_AT_ONCE, starts.length);
      if (!isOnePiece) put(from, to);
      const count = to - from;
      const done = this.#run(() =>
        wasm.abiGfnRanges(call, asId, slot, count, npages, argLow, argHigh, selector, looks),
      );
      if (done < count) {
        const before = from + Math.max(done, 0);
        const values = { slot, start: starts[before], npages };
        throw errorAfter(before, starts.length, errorOf(done < 0 ? done : this.result(1), method, values));
      }
      leafs.set(doubles.subarray(io, io + count), from);
      if (look !== undefined) sptes.set(this.#words.subarray((io + count) * 2, (io + count) * 2 + count), from);
      any ||= this.result(0) !== 0;
    }
    return { leafs, any, sptes };
  }

  /** @internal The status of Vcpu.access(): as operate(), without what that allocates; ACCESS_IN_PIECES where it must. */
  access(vcpu: number, gfn: number, kind: number, mode: number, count: number, stride: number): number {
    if (this.#stepping || this.#fault !== undefined) return ACCESS_IN_PIECES;
    try {
      return this.#accessCall(vcpu, gfn, kind, mode, count, stride);
    } catch (error) {
      throw this.#failed(error);
    }
  }

  /**
   * kvm_unmap_gfn_range(): zaps the leaves of the range in the roots that its selector means.
   * @returns whether the caller must flush remote TLBs (flushRemoteTlbs())
   * @throws {KvmError} EINVAL: no such slot, empty, not within the slot, both bools under gmem-v13
   */
  unmapGfnRange(range: KvmGfnRange): boolean {
    return this.#gfnRange(0, 'unmapGfnRange', range);
  }
  /** kvm_age_gfn(): clears Accessed. @returns whether any leaf had it. Errors as unmapGfnRange(). */
  ageGfn(range: KvmGfnRange): boolean {
    return this.#gfnRange(1, 'ageGfn', range);
  }
  /**
   * unmapGfnRange() of many ranges, one after the other, in one call: what a replay or a bench of small ranges takes. No
   * flush is done between them.
   * @throws {KvmError} EINVAL as unmapGfnRange(), with nothing done; ENOMEM or EIO at one of them, with `done` before it
   * @example
   * const starts = Float64Array.of(0, 4096, 1024);
   * const { leafs, any } = vm.unmapGfnRanges({ slot: 0, starts, npages: 512 });
   * if (any) vm.flushRemoteTlbs();
   */
  unmapGfnRanges(ranges: KvmGfnRanges): GfnRangesResult {
    return this.#gfnRanges(0, 'unmapGfnRanges', ranges);
  }
  /** ageGfn() of many ranges, as unmapGfnRanges(). */
  ageGfnRanges(ranges: KvmGfnRanges): GfnRangesResult {
    return this.#gfnRanges(1, 'ageGfnRanges', ranges);
  }
  /** kvm_test_age_gfn(): only looks. Errors as unmapGfnRange(). */
  testAgeGfn(range: KvmGfnRange): boolean {
    return this.#gfnRange(2, 'testAgeGfn', range);
  }
  /**
   * kvm_set_spte_gfn(), of kernels before 6.10: on the one gfn, zaps the 4K leaf and, if the new host pte (`arg.pte`) is
   * read-only, sets it again read-only.
   * @throws {KvmError} EOPNOTSUPP under the linux profiles; EINVAL for more than one gfn, and as unmapGfnRange()
   */
  setSpteGfn(range: KvmGfnRange): boolean {
    return this.#gfnRange(3, 'setSpteGfn', range);
  }
  /** kvm_zap_gfn_range(): [startGfn, endGfn) in all valid roots of every address space; under tdx-v18 shared ones only. */
  zapGfnRange(startGfn: number, endGfn: number): void {
    integer(startGfn, 'startGfn', 0, 2 ** 52 - 1);
    integer(endGfn, 'endGfn', 0, 2 ** 52);
    this.operate('abiZapGfnRange', [startGfn, endGfn], GATE_OPERATION, (status) => {
      check(status, 'zapGfnRange', { startGfn, endGfn });
    });
  }
  /** The flush that a kvm_gfn_range call asked its caller for. */
  flushRemoteTlbs(): void {
    this.operate('vmFlushRemoteTlbs', [], GATE_OPERATION, () => undefined);
  }

  // --- Questions -------------------------------------------------------------------------------------------------------

  /** Every counter by name; leaf and table counts are current, the rest only grow. */
  stats(): Record<string, number> {
    const stats: Record<string, number> = {};
    const at = this.#at.counters;
    for (const [index, name] of COUNTER_NAMES.entries()) {
      stats[name] = this.#words[at + index * 2] + this.#words[at + index * 2 + 1] * 4294967296;
    }
    stats.entries_visited = 0;
    for (let level = 1; level <= 5; level++) stats.entries_visited += stats[`entries_visited_l${level}`];
    return stats;
  }

  /** One of the counters of stats(), at the cost of a memory read. */
  stat(name: CounterName): number {
    const index = COUNTER_INDEX[name];
    if (index === undefined) {
      if (name === 'entries_visited') return this.stats().entries_visited;
      throw new RangeError(`name is ${JSON.stringify(name)}: there is no such counter`);
    }
    const at = this.#at.counters + index * 2;
    return this.#words[at] + this.#words[at + 1] * 4294967296;
  }

  /**
   * What was lost so far: totals of all that went, and records of what went although the request didn't ask for it: private
   * pages whose content was destroyed, gfns zapped beyond the range.
   */
  losses(): LossReport {
    const at = layout.CONTROL_AT_LOSS_COUNT >>> 2;
    const first = layout.LOSSES_BASE >>> 2;
    const stats = this.stats();
    return {
      privatePagesLost: stats.private_pages_lost,
      pagesToAccept: stats.private_pages_to_accept,
      gfnsZappedOutside: stats.gfns_zapped_outside_request,
      staleSharedLeaves: this.#run(() => this.#wasm.staleSharedLeafs()),
      records: decodeLosses(this.#words.subarray(first), this.#words[at], this.options.filterForm),
      recordsDropped: this.#words[at + 1],
    };
  }

  /**
   * The records since the last call, undecoded: four u32 words each, as assembly/trace.ts draws them. `words` is a view on
   * the engine's memory that `read` must not keep. Forgets them as trace() does, unless `read` throws.
   * @returns what `read` returns
   */
  readTrace<T>(read: (words: Uint32Array, records: number) => T): T {
    if (typeof read !== 'function') throw new TypeError(`read is ${String(read)}: it must be a function`);
    const records = this.#words[layout.CONTROL_AT_TRACE_COUNT >>> 2];
    const first = layout.RING_BASE >>> 2;
    const result = read(this.#words.subarray(first, first + records * 4), records);
    this.#forgetTrace();
    return result;
  }
  #forgetTrace(): void {
    this.#words[layout.CONTROL_AT_TRACE_COUNT >>> 2] = 0;
    this.#words[layout.CONTROL_AT_TRACE_DROPPED >>> 2] = 0;
    this.#words[(layout.CONTROL_AT_TRACE_DROPPED >>> 2) + 1] = 0;
  }

  /** The events since the last call, oldest first. Empty unless `traceRecords` was given. */
  trace(): TraceEvent[] {
    const count = this.#words[layout.CONTROL_AT_TRACE_COUNT >>> 2];
    const events = decodeTrace(new Uint32Array(this.#memory.buffer, layout.RING_BASE, count * 4), count);
    this.#forgetTrace();
    return events;
  }

  /** Events that found the ring full since it was last read: the newest are dropped. */
  get traceDropped(): number {
    const at = layout.CONTROL_AT_TRACE_DROPPED >>> 2;
    return this.#words[at] + this.#words[at + 1] * 4294967296;
  }

  /** The live roots: index in the engine, kind and address space, oldest first. */
  #roots(): { index: number; mirror: boolean; asId: number; invalid: boolean; sequence: number }[] {
    const roots = [];
    const count = this.#words[layout.CONTROL_AT_ROOT_HIGH_WATER >>> 2];
    for (let index = 0; index < count; index++) {
      const at = (layout.ROOTS_BASE + index * layout.ROOT_BYTES) >>> 2;
      if (this.#words[at + 4] === 0) continue;
      roots.push({
        index,
        mirror: this.#words[at + 5] === 1,
        asId: this.#words[at + 6],
        invalid: this.#words[at + 7] !== 0,
        sequence: this.#words[at + 8],
      });
    }
    return roots.sort((a, b) => a.sequence - b.sequence);
  }

  /** How many roots are alive, obsolete ones included. */
  get rootCount(): number {
    return this.#roots().length;
  }

  /**
   * The entries from the root down to what maps `gpa`, at most one a level. Empty if no such root is loaded.
   * A TD's mirror root is meant unless `root` says otherwise or the address has the shared bit.
   */
  walk(gpa: U64, options: { asId?: number; root?: 'direct' | 'mirror' } = {}): WalkEntry[] {
    object(options, 'options');
    const [low, high] = halvesOf(gpa, 'gpa');
    const wasm = this.#wasm;
    const directBits =
      this.#words[layout.CONTROL_AT_DIRECT_BITS >>> 2] +
      this.#words[(layout.CONTROL_AT_DIRECT_BITS >>> 2) + 1] * 4294967296;
    let gfn = Math.floor((low + high * 4294967296) / PAGE);
    const shared = directBits !== 0 && gfn >= directBits;
    if (shared) gfn -= directBits;
    const kind = oneOf(options.root ?? (directBits !== 0 && !shared ? 'mirror' : 'direct'), 'root', [
      'direct',
      'mirror',
    ] as const);
    const asId = integer(options.asId ?? 0, 'asId', 0, 1);
    const root = this.#roots().find((one) => !one.invalid && one.mirror === (kind === 'mirror') && one.asId === asId);
    if (root === undefined) return [];
    const count = this.#run(() => wasm.inspectWalk(root.index, gfn));
    return decodeWalk(this.#doubles.subarray(this.#at.io >>> 3), count, root.mirror);
  }

  /**
   * What a walk for `gfn` ends at. A TD's mirror root is meant unless `root` says otherwise; nonpresent if no such root
   * is loaded.
   * @throws {RangeError} if `gfn` is not within 0 and 2^52 - 1
   */
  spte(gfn: number, root: 'direct' | 'mirror' = this.#ownRoot, asId = 0): SpteMeaning {
    const isMirror = root === 'mirror';
    if (!isMirror && root !== 'direct') oneOf(root, 'root', ['direct', 'mirror'] as const);
    integer(gfn, 'gfn', 0, 2 ** 52 - 1);
    integer(asId, 'asId', 0, 1);
    return spteMeaning(this.#spteCall(isMirror ? 1 : 0, asId, gfn) & 0xffff, isMirror);
  }

  /**
   * spte() of many gfns at once. Each result holds what an spte is in bits 0-15, to be read with spteMeaning(), and its
   * level in bits 16-19.
   * @throws {RangeError} if a gfn is not within 0 and 2^52 - 1
   */
  sptes(gfns: Float64Array, root: 'direct' | 'mirror' = this.#ownRoot, asId = 0): Uint32Array {
    if (!(gfns instanceof Float64Array)) throw new TypeError('gfns must be a Float64Array');
    const kind = oneOf(root, 'root', ['direct', 'mirror'] as const) === 'mirror' ? 1 : 0;
    integer(asId, 'asId', 0, 1);
    const wasm = this.#wasm;
    const words = this.#words;
    const { io } = this.#at;
    const answered = (piece: Float64Array, from: number): void => {
      this.#doubles.set(piece, io >>> 3);
      const done = this.#run(() => wasm.inspectSptes(kind, asId, piece.length));
      if (done < piece.length) integer(piece[done], `gfns[${from + done}]`, 0, 2 ** 52 - 1);
    };
    const capacity = layout.IO_BYTES >>> 3;
    if (gfns.length <= capacity) {
      answered(gfns, 0);
      return words.slice(io >>> 2, (io >>> 2) + gfns.length);
    }
    const codes = new Uint32Array(gfns.length);
    for (let from = 0; from < gfns.length; from += capacity) {
      const piece = gfns.subarray(from, from + capacity);
      answered(piece, from);
      codes.set(words.subarray(io >>> 2, (io >>> 2) + piece.length), from);
    }
    return codes;
  }

  /** Maximal runs of leaves alike in flags, by root (oldest first) and gfn. */
  leafs(options: { asId?: number; root?: 'direct' | 'mirror' } = {}): LeafRun[] {
    object(options, 'options');
    const runs: LeafRun[] = [];
    const wasm = this.#wasm;
    const capacity = Math.floor(layout.IO_BYTES / 48);
    for (const root of this.#roots()) {
      if (options.asId !== undefined && root.asId !== options.asId) continue;
      if (options.root !== undefined && root.mirror !== (options.root === 'mirror')) continue;
      for (let from = 0; ; ) {
        const count = this.#run(() => wasm.inspectLeafs(root.index, from));
        const next = decodeLeafs(this.#doubles.subarray(this.#at.io >>> 3), count, root, runs);
        if (count < capacity) break;
        from = next;
      }
    }
    return runs;
  }

  /**
   * The oracle: lists what must not be. A leaf whose backing page is freed or replaced, a leaf whose kind disagrees with
   * its attribute, a zapped translation whose flush nobody owes or did, a mirror that disagrees with what it mirrors.
   */
  check(): CheckFinding[] {
    const count = this.#run(() => this.#wasm.vmCheck());
    return decodeCheck(this.#doubles.subarray(this.#at.io >>> 3), count, Math.floor(layout.IO_BYTES / 48));
  }

  /** @internal */
  inspectSept(gfn: number, level: number): number {
    return this.#run(() => this.#wasm.abiSeptEntry(gfn, level));
  }
  /** @internal */
  seamcallStatus(leaf: number, status: number): number {
    return this.#run(() => this.#wasm.abiSeamcallStatus(leaf, status));
  }
  /** @internal */
  tdState(): { epoch: number; state: 'build' | 'runnable' | 'teardown' } {
    if (this.options.type !== 'tdx') {
      throw new KvmError('EINVAL', 'tdx', `tdx: EINVAL: type is ${this.options.type}: only a TD has a TDX module`);
    }
    const at = layout.CONTROL_AT_TD_EPOCH >>> 2;
    const state = this.#words[layout.CONTROL_AT_TD_STATE >>> 2];
    return {
      epoch: this.#words[at] + this.#words[at + 1] * 4294967296,
      state: state === 1 ? 'build' : state === 2 ? 'runnable' : 'teardown',
    };
  }
  /** @internal */
  septLeafs(): SeptRun[] {
    const runs: SeptRun[] = [];
    const wasm = this.#wasm;
    const capacity = Math.floor(layout.IO_BYTES / 48);
    for (let from = 0; ; ) {
      const count = check(
        this.#run(() => wasm.inspectSept(from)),
        'leafs',
        {},
      );
      const next = decodeSept(this.#doubles.subarray(this.#at.io >>> 3), count, runs);
      if (count < capacity) return runs;
      from = next;
    }
  }

  /**
   * The RMP entry of the page that backs `gpa` on an SNP VM; undefined if no guest_memfd does.
   * @throws {KvmError} EINVAL on a VM of another type
   */
  rmp(gpa: U64): RmpEntry | undefined {
    const [low, high] = halvesOf(gpa, 'gpa');
    const gfn = Math.floor((low + high * 4294967296) / PAGE);
    const status = this.#run(() => this.#wasm.inspectRmp(-1, 0, gfn));
    if (status === ENOENT) return undefined;
    check(status, 'rmp', { gpa });
    return decodeRmp((index) => this.result(index));
  }

  /** @internal Puts `words` where a call with a buffer looks for it. */
  putIo(words: Uint32Array): void {
    this.#words.set(words, this.#at.io >>> 2);
  }

  /** The state of invalidation: how many are in progress, the sequence count, the hull in gfns (null: INVALID). */
  get invalidate(): { inProgress: number; seq: number; start: number | null; end: number | null } {
    const u64 = (at: number) => this.#words[at >>> 2] + this.#words[(at >>> 2) + 1] * 4294967296;
    const bound = (at: number) => (this.#words[(at >>> 2) + 1] === 0xffffffff ? null : u64(at));
    return {
      inProgress: this.#words[layout.CONTROL_AT_INV_IN_PROGRESS >>> 2],
      seq: u64(layout.CONTROL_AT_INV_SEQ),
      start: bound(layout.CONTROL_AT_INV_START),
      end: bound(layout.CONTROL_AT_INV_END),
    };
  }

  /** mmu_invalidate_retry_gfn(): under mmu_lock, must a fault for `gfn` that saw `seq` retry? */
  retryGfn(seq: number, gfn: number): boolean {
    return this.#wasm.abiRetryGfn(count(seq, 'seq'), count(gfn, 'gfn')) === 1;
  }
  /** mmu_invalidate_retry_gfn_unsafe(): the hint taken without the lock. */
  retryGfnUnsafe(seq: number, gfn: number): boolean {
    return this.#wasm.abiRetryGfnUnsafe(count(seq, 'seq'), count(gfn, 'gfn')) === 1;
  }
  /** mmu_invalidate_retry(): the form without a gfn. */
  retry(seq: number): boolean {
    return this.#wasm.abiRetry(count(seq, 'seq')) === 1;
  }
  /** Whether the huge region of `level` (2 or 3) that holds `gfn` is mixed. `slot` is address space << 16 | id. */
  isMixed(slot: number, level: 2 | 3, gfn: number): boolean {
    integer(slot, 'slot', 0, 2 ** 32 - 1);
    integer(level, 'level', 2, 3);
    if (slot >>> 16 > 1 || (slot & 0xffff) > 32767) throw new RangeError(`slot is ${slot}: there is no such slot`);
    return this.#wasm.abiIsMixed(slot >>> 16, slot & 0xffff, level, count(gfn, 'gfn')) === 1;
  }
  /** The memory attributes of `gfn`: 8 if private, else 0. */
  attributesOf(gfn: number): number {
    return this.#wasm.abiIsPrivate(count(gfn, 'gfn')) * 8;
  }
  /** The VM was bugged or died: every ioctl fails with EIO. */
  get dead(): boolean {
    return this.#words[layout.CONTROL_AT_DEAD >>> 2] !== 0;
  }

  // --- Snapshots -------------------------------------------------------------------------------------------------------

  #bytes({ start, bytes }: { start: number; bytes: number }): Uint8Array {
    return new Uint8Array(this.#memory.buffer, start, bytes);
  }

  #regions(): { start: number; bytes: number }[] {
    const regions = [];
    for (let index = 0; this.#wasm.snapshotRegion(index) === 1; index++) {
      regions.push({ start: this.result(0), bytes: this.result(1) });
    }
    return regions;
  }

  /** Bytes of engine memory in use: a snapshot's length. */
  get memoryUsed(): number {
    const regions = this.#regions();
    return regions.reduce((sum, { bytes }) => sum + bytes, SNAPSHOT_HEADER_WORDS * 4 + regions.length * 8);
  }

  /**
   * A copy of all of the VM's state: header, then the used prefix of each region. Two VMs that did the same in the same
   * way have the same bytes; one that ran in pieces may hold other bytes in memory that is free. Restorable by this
   * version only, into a VM created alike.
   */
  snapshot(): Uint8Array {
    if (this.#fault !== undefined) throw this.#fault;
    // The scratch results are no state.
    this.#doubles.fill(0, this.#at.result0, this.#at.result0 + 4);
    const regions = this.#regions();
    this.#doubles.fill(0, this.#at.result0, this.#at.result0 + 4);
    const total = regions.reduce((sum, { bytes }) => sum + bytes, SNAPSHOT_HEADER_WORDS * 4 + regions.length * 8);
    const copy = new Uint8Array(total);
    const header = new Uint32Array(copy.buffer, 0, SNAPSHOT_HEADER_WORDS + regions.length * 2);
    header[0] = SNAPSHOT_MAGIC;
    header[1] = SNAPSHOT_VERSION;
    header[2] = layout.LAYOUT_HASH;
    header[3] = this.#memory.buffer.byteLength / 65536;
    header[4] = regions.length;
    header[5] = this.options.debug ? 1 : 0;
    let at = header.byteLength;
    for (const [index, { start, bytes }] of regions.entries()) {
      header[SNAPSHOT_HEADER_WORDS + index * 2] = start;
      header[SNAPSHOT_HEADER_WORDS + index * 2 + 1] = bytes;
      copy.set(new Uint8Array(this.#memory.buffer, start, bytes), at);
      at += bytes;
    }
    return copy;
  }

  /**
   * Takes the state of a snapshot. Handles (guest_memfd descriptors, faults begun) are the snapshot's afterwards.
   * @throws {RangeError} if it is none, another version's, of a VM created otherwise, or cut short; nothing is changed then
   */
  restore(snapshot: Uint8Array): void {
    if (!(snapshot instanceof Uint8Array)) throw new TypeError('snapshot must be a Uint8Array');
    const refuse = (why: string) => {
      throw new RangeError(`the snapshot of ${snapshot.byteLength} bytes cannot be restored: ${why}`);
    };
    if (snapshot.byteLength < SNAPSHOT_HEADER_WORDS * 4) refuse('it is cut short');
    const aligned = snapshot.byteOffset % 4 === 0 ? snapshot : snapshot.slice();
    const header = new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength >>> 2);
    if (header[0] !== SNAPSHOT_MAGIC) refuse('it is no snapshot of eptsim');
    if (header[1] !== SNAPSHOT_VERSION) refuse(`it has version ${header[1]}, not ${SNAPSHOT_VERSION}`);
    if (header[2] !== layout.LAYOUT_HASH) refuse('another build with another memory layout wrote it');
    if (header[5] !== (this.options.debug ? 1 : 0)) refuse('the other of the debug and release builds wrote it');
    const pages = this.#memory.buffer.byteLength / 65536;
    if (header[3] !== pages) refuse(`its VM had a memory of ${header[3]} pages of 64 KiB, this one has ${pages}`);
    const count = header[4];
    const own = this.#regions();
    if (count !== own.length) refuse(`it lists ${count} regions, not ${own.length}`);
    if (header.length < SNAPSHOT_HEADER_WORDS + count * 2) refuse('it is cut short');
    let at = (SNAPSHOT_HEADER_WORDS + count * 2) * 4;
    const regions: { start: number; bytes: number; at: number }[] = [];
    for (let index = 0; index < count; index++) {
      const start = header[SNAPSHOT_HEADER_WORDS + index * 2];
      const bytes = header[SNAPSHOT_HEADER_WORDS + index * 2 + 1];
      if (start !== own[index].start) refuse(`its region ${index} is at ${start}, not at ${own[index].start}`);
      if (index === 0 && bytes !== own[0].bytes) refuse(`its region 0 should have ${own[0].bytes} bytes`);
      regions.push({ start, bytes, at });
      at += bytes;
    }
    if (at !== snapshot.byteLength) refuse(`it should have ${at} bytes`);
    const fixed = layout.CONTROL_AT_FIXED - regions[0].start + regions[0].at;
    const ours = new Uint8Array(this.#memory.buffer, layout.CONTROL_AT_FIXED, layout.CONTROL_FIXED_BYTES);
    if (ours.some((byte, index) => byte !== aligned[fixed + index])) refuse('its VM was created with other options');
    // What its control block says of the regions must be what it holds.
    const [control] = regions;
    const ownControl = this.#bytes(own[0]).slice();
    this.#bytes(control).set(aligned.subarray(control.at, control.at + control.bytes));
    const said = this.#regions();
    this.#bytes(own[0]).set(ownControl);
    const wrong = said.findIndex(
      ({ start, bytes }, index) => start !== regions[index].start || bytes !== regions[index].bytes,
    );
    if (wrong >= 0) refuse(`its region ${wrong} should have ${said[wrong].bytes} bytes`);
    for (const file of this.guestMemfds) closeFd(file.fd);
    for (const region of own) this.#bytes(region).fill(0);
    for (const region of regions) {
      this.#bytes(region).set(aligned.subarray(region.at, region.at + region.bytes));
    }
    for (const file of this.guestMemfds) adoptFd(this, file.fd);
    this.#fault = undefined;
    this.#restores++;
  }

  /** @internal For tests: the n-th reservation from now on is refused, once (0: none). */
  failReservation(n: number): void {
    this.#wasm.vmSetOption(OPTIONS.failReservation, n);
  }

  /** @internal For tests: the arena has only `blocks` blocks of 64 bytes left, beside those freed. */
  spareBlocks(blocks: number): void {
    this.#wasm.vmSetOption(OPTIONS.spareBlocks, blocks);
  }
}

function count(value: unknown, name: string): number {
  return integer(value, name, 0, Number.MAX_SAFE_INTEGER);
}
