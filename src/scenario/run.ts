// Runs a scenario: for each variant a new VM, its memory, then the steps, with the counters each step moved.
//
// A counter of a step is what vm.stats() says after it less what it said before, so the counts that name a present state
// (pages_4k, tables) can be negative. Losses are the step's own too, but for staleSharedLeaves: how many there are at its end.
// A scenario holds no time: the caller takes it, between the calls of onStep.

import { KvmError } from '../errors.ts';
import type { GuestMemfd } from '../guest-memfd.ts';
import type { Loss } from '../losses.ts';
import type { CreateVmOptions } from '../options.ts';
import type { MemorySection, Parameter, Quantity, Scenario, ScenarioPath, ScenarioStep, Variant } from '../scenario.ts';
import type { PageSize } from '../snp.ts';
import { createVm, type Losses, type Vm } from '../vm.ts';
import { scenarios } from './built-in.ts';
import { COMPARISON, checkScenario, MEMORY_FIELDS, type ScenarioFault, VARIANT_NAMES, VM_FIELDS } from './check.ts';
import { describe, ExpressionError, isQuantity, type Scope, type Value } from './expression.ts';
import { Expressions, type Field, fieldValue, plainValue } from './fields.ts';
import { type Arguments, type Method, methodNamed } from './methods.ts';
import { didYouMean } from './nearest.ts';

export interface RunOptions {
  /** Parameters that differ from the scenario's defaults. */
  set?: Readonly<Record<string, Quantity | boolean>>;
  /** Called after each step of the outer list, and after the memory section as 'memory'. */
  onStep?: (variant: string, step: StepResult) => void;
  /** Makes the VM of a variant; createVm() by default. Give it to pass `wasm` or `debug` along. */
  createVm?: (options: CreateVmOptions) => Vm | Promise<Vm>;
}

/** How many steps of a run may be taken in all, repeats included. */
const TAKEN_MAX = 1_000_000;
const FAILURES_MAX = 100;

export interface StepResult {
  name: string;
  /** The change of each counter of vm.stats(). */
  counters: Record<string, number>;
  /** The step's own; staleSharedLeaves says how many there are when it ends. */
  losses: Losses;
  /** What it lost or zapped although its request did not ask for it; only there if there is any. */
  unrequested?: Loss[];
}

export interface VariantResult extends StepResult {
  /** Every step, in order; the counters beside are those of the measured one. */
  steps: StepResult[];
}

/** A step did what the scenario says it must not. */
export interface ScenarioFailure {
  variant: string;
  step: string;
  path: ScenarioPath;
  message: string;
}

export interface ScenarioResult {
  scenario: string;
  /** The parameters the run had. */
  parameters: Record<string, number | string | boolean>;
  variants: VariantResult[];
  /** Expectations that did not hold; only there if some did not. */
  failures?: ScenarioFailure[];
}

/** The scenario can't be run as it stands. `faults` has each reason with its place. */
export class ScenarioError extends Error {
  readonly faults: readonly ScenarioFault[];
  constructor(scenario: string, faults: readonly ScenarioFault[], cause?: unknown) {
    const lines = faults.map(({ path, message }) => (path.length > 0 ? `${pathText(path)}: ${message}` : message));
    super([`scenario ${scenario}:`, ...lines].join(lines.length > 1 ? '\n  ' : ' '), { cause });
    this.name = 'ScenarioError';
    this.faults = faults;
  }
}

function pathText(path: ScenarioPath): string {
  return path.map((part, index) => (typeof part === 'number' ? `[${part}]` : index > 0 ? `.${part}` : part)).join('');
}

/**
 * The scenario of that name among those that come with the package.
 * @throws {ScenarioError} naming those there are.
 */
export function scenarioNamed(name: string): Scenario {
  if (Object.hasOwn(scenarios, name)) return scenarios[name];
  const known = Object.keys(scenarios);
  const hint = didYouMean(name, known) || `; there are ${known.join(', ')}`;
  throw new ScenarioError(describe(name), [{ path: [], message: `no built-in scenario has this name${hint}` }]);
}

/**
 * Runs a scenario, or the built-in one of that name, and returns what each variant counted.
 * @param scenario the scenario, or the name of one that comes with the package
 * @returns the counters and losses of each variant's measured step and of every step; failures if an expectation failed
 * @throws {ScenarioError} if the scenario is not well formed, or KVM refuses a step that does not say it will be refused
 * @example
 * const { variants } = await runScenario('convert-already-private', { set: { size: '8GiB' } });
 * variants[1].losses.privatePagesLost; // 131072
 */
export async function runScenario(scenario: Scenario | string, options: RunOptions = {}): Promise<ScenarioResult> {
  const chosen = typeof scenario === 'string' ? scenarioNamed(scenario) : scenario;
  const faults = checkScenario(chosen);
  const name = typeof chosen?.name === 'string' ? chosen.name : 'without a name';
  if (faults.length > 0) throw new ScenarioError(name, faults);
  return new Run(chosen, options).all();
}

interface Bindings {
  values: Map<string, Value>;
  guestMemfds: Map<string, GuestMemfd>;
  faults: Map<string, number>;
  /** The VM's slots as the memory section made them, for hva(). */
  slots: { gpa: bigint; size: bigint; hva: bigint }[];
}

/** What one variant's run carries along. */
interface Machine extends Bindings {
  variant: string;
  vm: Vm;
  /** vm.check() must find nothing after each step. */
  checked: boolean;
  destroyed: boolean;
}

class Run {
  readonly #scenario: Scenario;
  readonly #options: RunOptions;
  readonly #expressions = new Expressions();
  readonly #failures: ScenarioFailure[] = [];
  #taken = 0;

  constructor(scenario: Scenario, options: RunOptions) {
    this.#scenario = scenario;
    this.#options = options;
  }

  async all(): Promise<ScenarioResult> {
    const { compare, name } = this.#scenario;
    const parameters = this.#parameters({});
    const variants: VariantResult[] = [];
    for (const [index, variant] of (compare ?? [{ name }]).entries()) {
      try {
        variants.push(await this.#variant(variant, compare === undefined ? [] : ['compare', index]));
      } catch (error) {
        throw error instanceof ScenarioError ? this.#withFailures(error, variant.name) : error;
      }
    }
    return {
      scenario: name,
      parameters: Object.fromEntries([...parameters].map(([key, value]) => [key, plain(value)])),
      variants,
      ...(this.#failures.length > 0 && { failures: this.#failures }),
    };
  }

  #error(path: ScenarioPath, message: string, cause?: unknown, atKey = false): ScenarioError {
    return new ScenarioError(this.#scenario.name, [{ path, message, ...(atKey && { atKey }) }], cause);
  }

  #optionError(message: string): ScenarioError {
    return new ScenarioError(this.#scenario.name, [{ path: [], inOptions: true, message }]);
  }

  /** What failed before is often why a step was refused, and the run has no other result to say it in. */
  #withFailures({ faults, cause }: ScenarioError, variant: string): ScenarioError {
    const before = this.#failures.map((failure) => ({
      path: failure.path,
      message: `${failure.variant}, ${failure.step}: ${failure.message}`,
    }));
    const isTheVariants = ({ path }: ScenarioFault) =>
      this.#scenario.compare !== undefined && (path[0] === 'steps' || path[0] === 'memory');
    const named = faults.map((fault) =>
      isTheVariants(fault) ? { ...fault, message: `${variant}: ${fault.message}` } : fault,
    );
    return new ScenarioError(this.#scenario.name, [...before, ...named], cause);
  }

  #fail(variant: string, step: string, path: ScenarioPath, message: string): void {
    if (this.#failures.length < FAILURES_MAX) this.#failures.push({ variant, step, path, message });
  }

  /** Evaluates what stands at `path`, and names the place in the message if it can't. */
  #at<T>(path: ScenarioPath, evaluate: () => T): T {
    try {
      return evaluate();
    } catch (error) {
      if (error instanceof ExpressionError) throw this.#error(path, `${path.at(-1)}: ${error.message}`, error);
      throw error;
    }
  }

  #field(written: unknown, field: Field, path: ScenarioPath, scope: Scope): Value {
    return this.#at(path, () => fieldValue(written, field, scope, this.#expressions));
  }

  // --- parameters ---

  /** The parameters of a variant, within their limits, in the order of the scenario. */
  #parameters(variant: { set?: Variant['set'] }, path: ScenarioPath = []): Map<string, Value> {
    const parameters = this.#scenario.parameters ?? {};
    const set = this.#options.set ?? {};
    for (const name of Object.keys(set)) {
      if (!Object.hasOwn(parameters, name)) {
        const known = Object.keys(parameters);
        const list = known.length > 0 ? `its parameters are ${known.join(', ')}` : 'it has no parameters';
        throw this.#optionError(`no parameter is named ${describe(name)}${didYouMean(name, known)} (${list})`);
      }
      if (variant.set !== undefined && Object.hasOwn(variant.set, name)) {
        throw this.#optionError(`parameter ${name} differs between the variants and can't be set`);
      }
    }
    const values = new Map<string, Value>();
    const scope = scopeOf(values);
    for (const [name, written] of Object.entries(parameters)) {
      const declared: Parameter = isMapping(written) ? (written as Parameter) : { default: written as Quantity };
      const place = ['parameters', name];
      if (variant.set !== undefined && Object.hasOwn(variant.set, name)) {
        values.set(name, this.#parameter(name, declared, variant.set[name], [...path, 'set', name], scope));
      } else if (Object.hasOwn(set, name)) {
        values.set(name, this.#parameter(name, declared, set[name], undefined, scope));
      } else {
        const at = isMapping(written) ? [...place, 'default'] : place;
        values.set(name, this.#parameter(name, declared, declared.default, at, scope));
      }
    }
    return values;
  }

  /** The value of a parameter. `path` leads to what is written; undefined if an option of the run gave it. */
  #parameter(name: string, declared: Parameter, written: unknown, path: ScenarioPath | undefined, scope: Scope): Value {
    const refused = (reason: string): ScenarioError => {
      const message = `parameter ${name}: ${describe(written)} ${reason}`;
      return path === undefined ? this.#optionError(message) : this.#error(path, message);
    };
    if (declared.oneOf !== undefined) {
      if (typeof written === 'string' && declared.oneOf.includes(written)) return written;
      throw refused(`is none of ${declared.oneOf.join(', ')}`);
    }
    const limits = (['min', 'max', 'multipleOf'] as const).map((key) => {
      const limit = declared[key];
      if (limit === undefined) return undefined;
      const place = ['parameters', name, key];
      const found = this.#at(place, () => plainValue(limit, scope, this.#expressions));
      if (!isQuantity(found)) throw this.#error(place, `${key}: needs a number, not ${describe(found)}`);
      return found;
    });
    const [min, max, multipleOf] = limits;
    const rules = ['at least', 'at most', 'a multiple of'].flatMap((rule, index) => {
      const limit = limits[index];
      return limit === undefined ? [] : [`${rule} ${quantityText(limit)}`];
    });
    const refuse = (reason: string): ScenarioError => {
      return refused(rules.length > 0 ? `${reason}; it must be ${rules.join(', ')}` : reason);
    };
    let value: Value;
    try {
      value = plainValue(written, scope, this.#expressions);
    } catch (error) {
      if (error instanceof ExpressionError) throw refuse(`is no quantity: ${error.message}`);
      throw error;
    }
    if (rules.length === 0) return value;
    if (!isQuantity(value)) throw refuse('is no number');
    if (min !== undefined && value < min) throw refuse('is too small');
    if (max !== undefined && value > max) throw refuse('is too large');
    if (multipleOf !== undefined && Number(value) % Number(multipleOf) !== 0) throw refuse('does not fit');
    return value;
  }

  /** The scope all of a variant's expressions start from. */
  #values(parameters: Map<string, Value>): Map<string, Value> {
    const values = new Map(parameters);
    const scope = scopeOf(values);
    for (const [name, written] of Object.entries(this.#scenario.let ?? {})) {
      values.set(
        name,
        this.#at(['let', name], () => plainValue(written, scope, this.#expressions)),
      );
    }
    for (const [index, { that, say }] of (this.#scenario.require ?? []).entries()) {
      const path = ['require', index, 'that'];
      if (this.#field(that, { kind: 'flag' }, path, scope) !== true) {
        const given = [...parameters].map(([name, value]) => `${name} ${quantityText(value)}`).join(', ');
        throw this.#error(path, `${say} (${given})`);
      }
    }
    return values;
  }

  // --- one variant ---

  async #variant(variant: Variant, path: ScenarioPath): Promise<VariantResult> {
    const values = this.#values(this.#parameters(variant, path));
    const options = this.#vmOptions(variant, path, values);
    const vm = await this.#createVm(options, path);
    const resolved = vm.options;
    for (const name of VARIANT_NAMES) {
      values.set(name, name === 'variant' ? variant.name : String(resolved[name as 'type' | 'kernel' | 'filterForm']));
    }
    const checked = (variant.check ?? this.#scenario.check) === 'empty';
    const machine: Machine = {
      variant: variant.name,
      vm,
      checked,
      destroyed: false,
      values,
      guestMemfds: new Map(),
      faults: new Map(),
      slots: [],
    };
    try {
      return this.#steps(machine, variant, path);
    } finally {
      release(machine);
    }
  }

  #vmOptions(variant: Variant, path: ScenarioPath, values: Map<string, Value>): CreateVmOptions {
    const scope = scopeOf(values);
    const options: Record<string, unknown> = {};
    const sections: [unknown, ScenarioPath][] = [
      [this.#scenario.vm, ['vm']],
      [variant.vm ?? {}, [...path, 'vm']],
    ];
    for (const [section, place] of sections) {
      for (const [key, written] of Object.entries(section as Record<string, unknown>)) {
        const field = VM_FIELDS[key];
        if (field.kind !== 'record') options[key] = this.#field(written, field, [...place, key], scope);
        else {
          const entries = Object.entries(written as Record<string, unknown>).map(([name, inner]) => [
            name,
            this.#field(inner, field.fields![name], [...place, key, name], scope),
          ]);
          options[key] = { ...(options[key] as object | undefined), ...Object.fromEntries(entries) };
        }
      }
    }
    if (options.memory === undefined) throw this.#error(['vm'], "vm needs the field 'memory', the bytes of all slots");
    return options as unknown as CreateVmOptions;
  }

  async #createVm(options: CreateVmOptions, path: ScenarioPath): Promise<Vm> {
    try {
      return await (this.#options.createVm ?? createVm)(options);
    } catch (error) {
      if (error instanceof KvmError || error instanceof RangeError || error instanceof TypeError) {
        throw this.#error([...path, 'vm'], `the VM can't be created: ${error.message}`, error);
      }
      throw error;
    }
  }

  #steps(machine: Machine, variant: Variant, path: ScenarioPath): VariantResult {
    const { memory, steps: list } = this.#scenario;
    const steps: StepResult[] = [];
    const start = read(machine.vm);
    let before = start;
    let measured: StepResult | undefined;
    const take = (name: string, work: () => void): StepResult => {
      work();
      const after = read(machine.vm);
      const result = stepResult(name, before, after);
      before = after;
      steps.push(result);
      this.#options.onStep?.(machine.variant, result);
      return result;
    };
    if (memory !== undefined) {
      take('memory', () => {
        for (const [index, slot] of memory.entries()) this.#slot(machine, slot, ['memory', index]);
      });
    }
    for (const [index, step] of list.entries()) {
      const name = stepName(step);
      const result = take(name, () => this.#step(machine, step, ['steps', index]));
      if (step.measure === true) measured = result;
    }
    const result = measured ?? stepResult(this.#scenario.name, start, before);
    this.#expect(machine, result, variant.expect, [...path, 'expect'], scopeOf(machine.values));
    return { ...result, name: variant.name, steps };
  }

  #slot(machine: Machine, slot: MemorySection, path: ScenarioPath): void {
    const scope = scopeOf(machine.values);
    const field = (key: keyof MemorySection): Value =>
      this.#field(slot[key], MEMORY_FIELDS[key], [...path, key], scope);
    const gpa = field('gpa') as number | bigint;
    const size = field('size') as number | bigint;
    const hva = slot.hva === undefined ? sum(gpa, HVA_BASE) : (field('hva') as number | bigint);
    const region = {
      slot: field('slot') as number,
      flags: slot.flags === undefined ? 0 : (field('flags') as number),
      guestPhysAddr: gpa,
      memorySize: size,
      userspaceAddr: hva,
    };
    const { vm, guestMemfds } = machine;
    this.#refusable(path, 'the slot', () => {
      const kind = slot.host === undefined ? 'anon4k' : field('host');
      vm.host.mmap({ kind: kind as 'anon4k', hva, length: size });
      if (slot.guestMemfd === undefined) vm.setUserMemoryRegion(region);
      else {
        const offset = slot.guestMemfdOffset === undefined ? 0 : (field('guestMemfdOffset') as number | bigint);
        let file = guestMemfds.get(slot.guestMemfd);
        if (file === undefined) {
          const folioSize = slot.folioSize === undefined ? undefined : (field('folioSize') as PageSize);
          file = vm.createGuestMemfd({ size: sum(size, offset), folioSize });
          guestMemfds.set(slot.guestMemfd, file);
        }
        const flags = region.flags | GUEST_MEMFD;
        vm.setUserMemoryRegion2({ ...region, flags, guestMemfd: file.fd, guestMemfdOffset: offset });
      }
    });
    machine.slots.push({ gpa: BigInt(gpa), size: BigInt(size), hva: BigInt(hva) });
  }

  // --- steps ---

  /** Takes a step as often as it says, its expectations against all of its repeats together. */
  #step(machine: Machine, step: ScenarioStep, path: ScenarioPath): void {
    const scope = this.#scope(machine, path);
    if (step.if !== undefined && !this.#field(step.if, { kind: 'flag' }, [...path, 'if'], scope)) return;
    const repeat =
      step.repeat === undefined
        ? 1
        : (this.#field(step.repeat, { kind: 'number' }, [...path, 'repeat'], scope) as number);
    const index = step.index ?? 'index';
    const outer = machine.values.get(index);
    const before = step.expect === undefined ? undefined : read(machine.vm);
    this.#taken += step.repeat === undefined ? 1 : repeat;
    if (this.#taken > TAKEN_MAX) {
      const place = step.repeat === undefined ? path : [...path, 'repeat'];
      throw this.#error(place, `the run takes more than ${TAKEN_MAX} steps, repeats included; that is the limit`);
    }
    for (let count = 0; count < repeat; count++) {
      if (step.repeat !== undefined) machine.values.set(index, count);
      if (step.steps === undefined) this.#call(machine, step, path, scope);
      else
        for (const [inner, innerStep] of step.steps.entries())
          this.#step(machine, innerStep, [...path, 'steps', inner]);
    }
    if (outer === undefined) machine.values.delete(index);
    else machine.values.set(index, outer);

    const name = stepName(step);
    if (before !== undefined) {
      const after = read(machine.vm);
      const result = stepResult(name, before, after);
      this.#expect(machine, result, step.expect, [...path, 'expect'], scope);
    }
    if (machine.checked && step.steps === undefined) this.#oracle(machine, name, path);
  }

  #oracle(machine: Machine, step: string, path: ScenarioPath): void {
    if (machine.destroyed) return;
    const findings = machine.vm.check();
    if (findings.length === 0) return;
    const [first] = findings;
    const others = findings.length > 1 ? `, and ${findings.length - 1} more` : '';
    this.#fail(machine.variant, step, path, `the oracle finds ${first.kind}: ${first.message}${others}`);
  }

  #call(machine: Machine, step: ScenarioStep, path: ScenarioPath, scope: Scope): void {
    const name = methodOf(step);
    const method = methodNamed(name) as Method;
    const place = [...path, name];
    const args = this.#arguments(machine, method, (step[name] ?? {}) as Arguments, place, scope);
    const { vm } = machine;
    const vcpu = vm.vcpus[(args.vcpu ?? 0) as number];
    if (vcpu === undefined) {
      throw this.#error([...place, 'vcpu'], `vcpu: there is no vcpu ${args.vcpu}, the VM has ${vm.vcpus.length}`);
    }
    delete args.vcpu;
    const guestMemfd = args.guestMemfd as GuestMemfd;
    const label = stepName(step);
    let result: unknown;
    try {
      result = method.call({ vm, vcpu, host: vm.host, guestMemfd }, args);
    } catch (error) {
      if (!(error instanceof KvmError)) throw this.#refused(place, name, error);
      if (step.refused === error.code) return;
      if (step.refused === undefined) throw this.#refused(place, name, error);
      this.#fail(machine.variant, label, [...path, 'refused'], `expected ${step.refused}, but: ${error.message}`);
      return;
    }
    if (name === 'destroy') machine.destroyed = true;
    if (step.refused !== undefined) {
      this.#fail(machine.variant, label, [...path, 'refused'], `expected ${step.refused}, but ${name} succeeded`);
    }
    if (step.as !== undefined) {
      if (method.names === 'fault') machine.faults.set(step.as, result as number);
      else machine.guestMemfds.set(step.as, result as GuestMemfd);
    }
    this.#returns(machine, step, method, result, path, scope);
  }

  #arguments(machine: Machine, method: Method, written: Arguments, path: ScenarioPath, scope: Scope): Arguments {
    const args: Arguments = {};
    for (const [key, value] of Object.entries(written)) {
      const field = method.fields[key];
      const place = [...path, key];
      if (field.kind === 'guestMemfd') {
        args[key] = machine.guestMemfds.get(value as string);
        if (args[key] === undefined)
          throw this.#error(place, `${key}: the step that names ${describe(value)} was skipped`);
      } else if (field.kind === 'fault') {
        args[key] = machine.faults.get(value as string);
        if (args[key] === undefined)
          throw this.#error(place, `${key}: the step that names ${describe(value)} was skipped`);
      } else if (field.kind === 'list') {
        args[key] = (value as unknown[]).map((entry, index) =>
          this.#field(entry, { kind: 'u64' }, [...place, index], scope),
        );
      } else args[key] = this.#field(value, field, place, scope);
    }
    return args;
  }

  #returns(
    machine: Machine,
    step: ScenarioStep,
    method: Method,
    result: unknown,
    path: ScenarioPath,
    scope: Scope,
  ): void {
    const got = returned(result);
    const place = [...path, 'returns'];
    // An access, or another call that can end badly, is no silent matter then, unless the scenario asks for it.
    const expected =
      step.returns !== undefined ? this.#field(step.returns, method.returns as Field, place, scope) : method.endsWell;
    // biome-ignore lint/suspicious/noDoubleEquals: 1 and 1n are one quantity.
    if (expected === undefined || got == expected) return;
    const at = step.returns === undefined ? [...path, methodOf(step)] : place;
    this.#fail(
      machine.variant,
      stepName(step),
      at,
      `${methodOf(step)} returned ${describe(got)}${errnoText(result)}, not ${describe(expected)}`,
    );
  }

  /** A refusal no step asked for ends the run: what follows would measure something else. */
  #refused(path: ScenarioPath, name: string, error: unknown): ScenarioError | Error {
    if (error instanceof KvmError) return this.#error(path, `refused: ${error.message}`, error);
    if (error instanceof RangeError || error instanceof TypeError) {
      return this.#error(path, `${name}: ${error.message}`, error);
    }
    return error as Error;
  }

  #refusable(path: ScenarioPath, name: string, call: () => void): void {
    try {
      call();
    } catch (error) {
      if (error instanceof ScenarioError) throw error;
      throw this.#refused(path, name, error);
    }
  }

  #expect(
    machine: Machine,
    result: StepResult,
    expect: ScenarioStep['expect'],
    path: ScenarioPath,
    scope: Scope,
  ): void {
    const known: Record<string, number> = { ...result.counters, ...result.losses };
    for (const [counter, written] of Object.entries(expect ?? {})) {
      const place = [...path, counter];
      if (!Object.hasOwn(known, counter)) {
        const hint = didYouMean(counter, Object.keys(known)) || ` (known: ${Object.keys(known).join(', ')})`;
        throw this.#error(place, `no counter is named ${describe(counter)}${hint}`, undefined, true);
      }
      const comparison = typeof written === 'string' ? COMPARISON.exec(written) : null;
      const operator = comparison?.[1] ?? '==';
      const value = this.#at(place, () => plainValue(comparison?.[2] ?? written, scope, this.#expressions));
      if (!isQuantity(value)) throw this.#error(place, `${counter}: needs a number, not ${describe(value)}`);
      if (!holds(known[counter], operator, value)) {
        const relation = operator === '==' ? '' : `${operator} `;
        this.#fail(
          machine.variant,
          result.name,
          place,
          `${counter} is ${known[counter]}, expected ${relation}${value}`,
        );
      }
    }
  }

  #scope(machine: Machine, path: ScenarioPath): Scope {
    return {
      ...scopeOf(machine.values),
      hva: (gpa) => {
        const at = BigInt(typeof gpa === 'number' ? Math.floor(gpa) : gpa);
        const slot = machine.slots.find((candidate) => at >= candidate.gpa && at < candidate.gpa + candidate.size);
        if (slot === undefined)
          throw this.#error(path, `hva(): no slot of the memory section holds ${quantityText(gpa)}`);
        return plainNumber(slot.hva + at - slot.gpa);
      },
    };
  }
}

/** Default place of a slot's host memory: 16 TiB up, so that guests of up to 64 TiB stay in the user half. */
const HVA_BASE = 2 ** 44;
const GUEST_MEMFD = 4;

interface Reading {
  counters: Record<string, number>;
  losses: Losses;
  records: readonly Loss[];
}

function read(vm: Vm): Reading {
  const { records, recordsDropped: _dropped, ...losses } = vm.losses();
  return { counters: { ...vm.stats() }, losses, records };
}

function difference(before: Record<string, number>, after: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(after).map(([name, value]) => [name, value - (before[name] ?? 0)]));
}

/** What happened between two readings. */
function stepResult(name: string, before: Reading, after: Reading): StepResult {
  const unrequested = after.records.slice(before.records.length);
  // A run of gfns that goes on is one record: the last one before may have grown.
  const grown = after.records[before.records.length - 1];
  const last = before.records[before.records.length - 1];
  if (grown !== undefined && last !== undefined && grown.end > last.end) {
    unrequested.unshift({ ...grown, start: last.end });
  }
  return {
    name,
    counters: difference(before.counters, after.counters),
    losses: lossesOf(before, after),
    ...(unrequested.length > 0 && { unrequested }),
  };
}

function lossesOf(before: Reading, after: Reading): Losses {
  const lost = difference({ ...before.losses }, { ...after.losses });
  return { ...(lost as unknown as Losses), staleSharedLeaves: after.losses.staleSharedLeaves };
}

/** Lets go of what the scenario left alive: fds are numbered process-wide. */
function release(machine: Machine): void {
  for (const file of machine.guestMemfds.values()) quietly(() => file.close());
  if (!machine.destroyed) quietly(() => machine.vm.destroy());
}

function quietly(call: () => void): void {
  try {
    call();
  } catch {
    // Closed already, or the VM is dead: nothing is left to let go of.
  }
}

function scopeOf(values: Map<string, Value>): Scope {
  return { value: (name) => values.get(name), names: () => [...values.keys()] };
}

function methodOf(step: ScenarioStep): string {
  return Object.keys(step).find((key) => methodNamed(key) !== undefined) as string;
}

function stepName(step: ScenarioStep): string {
  return step.name ?? (step.steps === undefined ? methodOf(step) : 'steps');
}

/** What a method returned, as `returns` compares it: an access by its reason, a pre-fault by the bytes left over. */
function returned(result: unknown): Value | undefined {
  if (typeof result !== 'object' || result === null) return result as Value | undefined;
  if ('reason' in result) return result.reason as string;
  if ('size' in result) return result.size as number | bigint;
  return undefined;
}

function errnoText(result: unknown): string {
  const errno = typeof result === 'object' && result !== null && 'errno' in result ? result.errno : undefined;
  return errno === undefined ? '' : ` (${errno})`;
}

function holds(actual: number, operator: string, expected: number | bigint): boolean {
  switch (operator) {
    case '<':
      return actual < expected;
    case '<=':
      return actual <= expected;
    case '>':
      return actual > expected;
    case '>=':
      return actual >= expected;
    case '!=':
      return Number(expected) !== actual;
    default:
      return Number(expected) === actual;
  }
}

function quantityText(value: Value): string {
  if (!isQuantity(value) || value < 1024) return String(value);
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  let unit = -1;
  let rest = BigInt(typeof value === 'number' ? Math.floor(value) : value);
  while (unit < 3 && rest % 1024n === 0n) {
    rest /= 1024n;
    unit++;
  }
  return unit < 0 ? String(value) : `${rest}${units[unit]}`;
}

function plain(value: Value): number | string | boolean {
  return typeof value === 'bigint' ? String(value) : value;
}

function plainNumber(value: bigint): number | bigint {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

function sum(a: number | bigint, b: number | bigint): number | bigint {
  return plainNumber(BigInt(a) + BigInt(b));
}

function isMapping(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
