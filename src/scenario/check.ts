// Judges a scenario before anything runs: its structure, the names of fields, methods and parameters, each expression.
//
// Every fault is reported with the path that leads to it, so that a caller who has the text can say line and column.
// What only a run can know (a limit on a parameter, a counter's name) is left to run.ts.

import { HOST_KINDS } from '../host-memory.ts';
import { FILTER_FORMS, GMEM_FILTERS, KERNELS, VM_TYPES } from '../options.ts';
import type { ScenarioPath } from '../scenario.ts';
import { PAGE_SIZES } from '../snp.ts';
import { TRACK_POLICIES, ZAP_POLICIES } from '../tdx.ts';
import { CONSTANTS, describe } from './expression.ts';
import { type Field, fieldFault, flag, number, optional, u64, word } from './fields.ts';
import { METHODS, methodNamed } from './methods.ts';
import { didYouMean, nearestNames } from './nearest.ts';

/** One thing wrong with a scenario. */
export interface ScenarioFault {
  path: ScenarioPath;
  /** The fault is the name at the end of the path, not its value. */
  atKey?: boolean;
  /** The fault is in what the run was given beside the scenario: a parameter set. The path is empty then. */
  inOptions?: boolean;
  message: string;
}

export const VM_FIELDS: Readonly<Record<string, Field>> = {
  type: optional(word(...VM_TYPES)),
  kernel: optional(word(...KERNELS)),
  filterForm: optional(word(...FILTER_FORMS)),
  memory: optional(u64),
  vcpus: optional(number),
  maxphyaddr: optional(number),
  gpaw: optional(number),
  quirks: optional({ kind: 'record', fields: { slotZapAll: optional(flag) } }),
  nxHugePages: optional(flag),
  eagerPageSplit: optional(flag),
  mmioCaching: optional(flag),
  hugepageGuard: optional(flag),
  septVeDisable: optional(flag),
  td: optional({
    kind: 'record',
    fields: {
      build: optional(flag),
      hugePages: optional(flag),
      zap: optional(word(...ZAP_POLICIES)),
      track: optional(word(...TRACK_POLICIES)),
      localRetry: optional(flag),
      packages: optional(number),
    },
  }),
  rmpChecks: optional(flag),
  gmemInvalidateFilter: optional(word(...GMEM_FILTERS)),
};

export const MEMORY_FIELDS: Readonly<Record<string, Field>> = {
  slot: number,
  gpa: u64,
  size: u64,
  flags: optional(number),
  host: optional(word(...HOST_KINDS)),
  hva: optional(u64),
  guestMemfd: optional({ kind: 'text' }),
  guestMemfdOffset: optional(u64),
  folioSize: optional(word(...PAGE_SIZES)),
};

/** What a step may hold beside its method. */
const STEP_FIELDS = ['name', 'steps', 'if', 'repeat', 'index', 'measure', 'as', 'returns', 'refused', 'expect'];

/** Names every expression of a variant may use. */
export const VARIANT_NAMES = ['type', 'variant', 'kernel', 'filterForm'];

/** Sizes beyond which a scenario is refused. */
export const LIMITS = { steps: 10_000, depth: 8, variants: 64, parameters: 256, faults: 20 } as const;

const NAME = /^[A-Za-z_]\w*$/;
const RESERVED = new Set([...VARIANT_NAMES, ...Object.keys(CONSTANTS), 'true', 'false']);
export const COMPARISON = /^\s*(==|!=|<=|>=|<|>)\s*(.+)$/s;

/**
 * What is wrong with `scenario`, a value of any kind; an empty list if nothing is.
 * @returns the faults in the order of the scenario, 20 at most.
 */
export function checkScenario(scenario: unknown): ScenarioFault[] {
  const checker = new Checker();
  checker.scenario(scenario);
  return checker.faults.slice(0, LIMITS.faults);
}

type Mapping = Record<string, unknown>;

function isMapping(value: unknown): value is Mapping {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The names a step can see. */
interface Names {
  values: string[];
  guestMemfds: string[];
  faults: string[];
}

class Checker {
  readonly faults: ScenarioFault[] = [];
  #steps = 0;
  #measured = 0;

  #fault(path: ScenarioPath, message: string, atKey = false): void {
    this.faults.push({ path, message, ...(atKey && { atKey }) });
  }

  /** `value` as a mapping with no keys but `known`, or undefined after a fault. */
  #mapping(value: unknown, path: ScenarioPath, what: string, known?: readonly string[]): Mapping | undefined {
    if (!isMapping(value)) {
      this.#fault(path, `${what} must be a mapping, not ${describe(value)}`);
      return undefined;
    }
    if (known !== undefined) {
      for (const key of Object.keys(value)) {
        if (this.faults.length > LIMITS.faults) break;
        if (!known.includes(key)) {
          const hint = didYouMean(key, known) || ` (known: ${known.join(', ')})`;
          this.#fault([...path, key], `${what} has no field ${describe(key)}${hint}`, true);
        }
      }
    }
    return value;
  }

  #list(value: unknown, path: ScenarioPath, what: string, most: number): unknown[] {
    if (value === undefined) return [];
    if (!Array.isArray(value)) {
      this.#fault(path, `${what} must be a list, not ${describe(value)}`);
      return [];
    }
    if (value.length > most) {
      this.#fault(path, `${what} has ${value.length} entries, the limit is ${most}`);
      return [];
    }
    return value;
  }

  #text(value: unknown, path: ScenarioPath, what: string): void {
    if (typeof value !== 'string' || value === '') this.#fault(path, `${what} must be a text, not ${describe(value)}`);
    else if (what.endsWith('name') && value.length > 100) {
      this.#fault(path, `${what} has ${value.length} characters, the limit is 100`);
    }
  }

  #newName(name: unknown, path: ScenarioPath, what: string, taken: readonly string[], atKey: boolean): boolean {
    if (typeof name !== 'string' || !NAME.test(name)) {
      this.#fault(path, `${what} ${describe(name)} must be letters, digits and _ and not start with a digit`, atKey);
    } else if (RESERVED.has(name)) {
      this.#fault(path, `${what} ${describe(name)} has a meaning of its own in expressions; take another`, atKey);
    } else if (taken.includes(name)) {
      this.#fault(path, `${what} ${describe(name)} is taken already`, atKey);
    } else return true;
    return false;
  }

  #value(value: unknown, field: Field, path: ScenarioPath, known: readonly string[], what = ''): void {
    const message = fieldFault(value, field, known);
    if (message !== undefined) this.#fault(path, `${what || path.at(-1)}: ${message}`);
  }

  scenario(value: unknown): void {
    const known = ['name', 'description', 'parameters', 'let', 'require', 'vm', 'memory', 'check', 'steps', 'compare'];
    const scenario = this.#mapping(value, [], 'the scenario', known);
    if (scenario === undefined) return;
    for (const key of ['name', 'vm', 'steps']) {
      if (scenario[key] === undefined) this.#fault([], `the scenario needs the field '${key}'`);
    }
    if (scenario.name !== undefined) this.#text(scenario.name, ['name'], "the scenario's name");
    if (scenario.description !== undefined) this.#text(scenario.description, ['description'], 'the description');

    const values: string[] = [];
    this.#parameters(scenario.parameters, values);
    const parameters = [...values];
    this.#let(scenario.let, values);
    for (const [index, rule] of this.#list(scenario.require, ['require'], 'require', LIMITS.parameters).entries()) {
      this.#requirement(rule, ['require', index], values);
    }

    const names: Names = { values: [...values, ...VARIANT_NAMES], guestMemfds: [], faults: [] };
    if (scenario.vm !== undefined) this.vm(scenario.vm, ['vm'], values);
    for (const [index, slot] of this.#list(scenario.memory, ['memory'], 'memory', LIMITS.steps).entries()) {
      this.#memory(slot, ['memory', index], names);
    }
    this.#checkWord(scenario.check, ['check']);
    if (scenario.steps !== undefined) this.#steplist(scenario.steps, ['steps'], names, 0);
    this.#compare(scenario.compare, parameters, names);
  }

  #parameters(value: unknown, names: string[]): void {
    if (value === undefined) return;
    const parameters = this.#mapping(value, ['parameters'], 'parameters');
    if (parameters === undefined) return;
    const entries = Object.entries(parameters);
    if (entries.length > LIMITS.parameters) {
      this.#fault(['parameters'], `there are ${entries.length} parameters, the limit is ${LIMITS.parameters}`);
      return;
    }
    for (const [name, written] of entries) {
      const path = ['parameters', name];
      if (!this.#newName(name, path, 'the parameter name', names, true)) continue;
      if (isMapping(written)) this.#parameter(written, path, names);
      else this.#value(written, { kind: 'any' }, path, names);
      names.push(name);
    }
  }

  #parameter(written: Mapping, path: ScenarioPath, names: readonly string[]): void {
    this.#mapping(written, path, 'the parameter', ['default', 'description', 'min', 'max', 'multipleOf', 'oneOf']);
    if (written.default === undefined) this.#fault(path, "the parameter needs the field 'default'");
    if (written.description !== undefined) this.#text(written.description, [...path, 'description'], 'the description');
    for (const key of ['min', 'max', 'multipleOf']) {
      if (written[key] === undefined) continue;
      if (written.oneOf !== undefined) this.#fault([...path, key], `a parameter with oneOf has no ${key}`, true);
      this.#value(written[key], { kind: 'any' }, [...path, key], names);
    }
    if (written.oneOf === undefined) {
      if (written.default !== undefined) this.#value(written.default, { kind: 'any' }, [...path, 'default'], names);
      return;
    }
    const words = this.#list(written.oneOf, [...path, 'oneOf'], 'oneOf', 100);
    for (const [index, entry] of words.entries()) this.#text(entry, [...path, 'oneOf', index], 'a word of oneOf');
    if (written.default !== undefined && !words.includes(written.default)) {
      this.#fault([...path, 'default'], `default: ${describe(written.default)} is none of ${words.join(', ')}`);
    }
  }

  #let(value: unknown, names: string[]): void {
    if (value === undefined) return;
    const definitions = this.#mapping(value, ['let'], 'let');
    if (definitions === undefined) return;
    if (Object.keys(definitions).length > LIMITS.parameters) {
      this.#fault(['let'], `there are more than ${LIMITS.parameters} names`);
      return;
    }
    for (const [name, written] of Object.entries(definitions)) {
      const path = ['let', name];
      if (!this.#newName(name, path, 'the name', names, true)) continue;
      this.#value(written, { kind: 'any' }, path, names);
      names.push(name);
    }
  }

  #requirement(value: unknown, path: ScenarioPath, names: readonly string[]): void {
    const rule = this.#mapping(value, path, 'a requirement', ['that', 'say']);
    if (rule === undefined) return;
    for (const key of ['that', 'say']) {
      if (rule[key] === undefined) this.#fault(path, `a requirement needs the field '${key}'`);
    }
    if (rule.that !== undefined) this.#value(rule.that, flag, [...path, 'that'], names);
    if (rule.say !== undefined) this.#text(rule.say, [...path, 'say'], 'say');
  }

  /** The fields of `value` against `fields`: unknown ones, missing ones, wrong values. */
  #fields(
    value: unknown,
    fields: Readonly<Record<string, Field>>,
    path: ScenarioPath,
    what: string,
    names: Names,
  ): Mapping | undefined {
    const mapping = this.#mapping(value, path, what, Object.keys(fields));
    if (mapping === undefined) return undefined;
    for (const [key, field] of Object.entries(fields)) {
      const written = mapping[key];
      const at = [...path, key];
      if (written === undefined) {
        // A misspelt name is one mistake, not two.
        const isMisspelt = Object.keys(mapping).some(
          (other) => !Object.hasOwn(fields, other) && nearestNames(other, Object.keys(fields)).includes(key),
        );
        if (!field.optional && !isMisspelt) this.#fault(path, `${what} needs the field '${key}'`);
      } else if (field.kind === 'record') this.#fields(written, field.fields!, at, key, names);
      else if (field.kind === 'guestMemfd') this.#reference(written, at, 'guest_memfd', names.guestMemfds);
      else if (field.kind === 'fault') this.#reference(written, at, 'fault', names.faults);
      else if (field.kind === 'text') this.#text(written, at, key);
      else if (field.kind === 'list') {
        for (const [index, entry] of this.#list(written, at, key, 16).entries()) {
          this.#value(entry, u64, [...at, index], names.values, key);
        }
      } else this.#value(written, field, at, names.values);
    }
    return mapping;
  }

  #reference(written: unknown, path: ScenarioPath, what: string, known: readonly string[]): void {
    if (typeof written === 'string' && known.includes(written)) return;
    const hint = typeof written === 'string' ? didYouMean(written, known) : '';
    const list = known.length > 0 ? known.join(', ') : 'none so far';
    this.#fault(path, `${path.at(-1)}: no ${what} is named ${describe(written)}${hint} (named: ${list})`);
  }

  vm(value: unknown, path: ScenarioPath, values: readonly string[]): void {
    this.#fields(value, VM_FIELDS, path, 'vm', { values: [...values], guestMemfds: [], faults: [] });
  }

  #memory(value: unknown, path: ScenarioPath, names: Names): void {
    const slot = this.#fields(value, MEMORY_FIELDS, path, 'a slot', names);
    const name = slot?.guestMemfd;
    if (name === undefined || (typeof name === 'string' && names.guestMemfds.includes(name))) return;
    const taken = [...names.values, ...names.faults];
    if (this.#newName(name, [...path, 'guestMemfd'], 'the name', taken, false)) names.guestMemfds.push(name as string);
  }

  #checkWord(value: unknown, path: ScenarioPath): void {
    if (value === undefined || value === 'empty' || value === 'off') return;
    this.#fault(path, `check: ${describe(value)} is none of empty, off`);
  }

  #expect(value: unknown, path: ScenarioPath, names: readonly string[]): void {
    if (value === undefined) return;
    const expect = this.#mapping(value, path, 'expect');
    for (const [counter, written] of Object.entries(expect ?? {})) {
      const comparison = typeof written === 'string' ? COMPARISON.exec(written) : null;
      this.#value(comparison === null ? written : comparison[2], { kind: 'any' }, [...path, counter], names);
    }
  }

  #steplist(value: unknown, path: ScenarioPath, names: Names, depth: number): void {
    if (depth >= LIMITS.depth) {
      this.#fault(path, `steps nest deeper than ${LIMITS.depth}`);
      return;
    }
    const list = this.#list(value, path, 'steps', LIMITS.steps);
    if (Array.isArray(value) && value.length === 0) this.#fault(path, 'steps is empty');
    for (const [index, step] of list.entries()) {
      if (++this.#steps > LIMITS.steps) {
        this.#fault([...path, index], `there are more than ${LIMITS.steps} steps; use repeat`);
        return;
      }
      if (this.faults.length > LIMITS.faults) return;
      this.#step(step, [...path, index], names, depth);
    }
  }

  #step(value: unknown, path: ScenarioPath, names: Names, depth: number): void {
    const step = this.#mapping(value, path, 'a step');
    if (step === undefined) return;
    const methods = Object.keys(step).filter((key) => !STEP_FIELDS.includes(key) && methodNamed(key) !== undefined);
    for (const key of Object.keys(step)) {
      if (STEP_FIELDS.includes(key) || methods.includes(key)) continue;
      const known = [...Object.keys(METHODS), ...STEP_FIELDS];
      const hint = didYouMean(key, known) || ' (methods and fields: docs/scenario-format.md)';
      this.#fault([...path, key], `a step has no method or field ${describe(key)}${hint}`, true);
    }
    const count = methods.length + (step.steps === undefined ? 0 : 1);
    if (count !== 1) {
      const said = count === 0 ? 'neither' : [...methods, ...(step.steps === undefined ? [] : ['steps'])].join(' and ');
      if (count > 1 || Object.keys(step).every((key) => STEP_FIELDS.includes(key))) {
        this.#fault(path, `a step holds one method or a list of steps, this one has ${said}`);
      }
      return;
    }

    if (step.name !== undefined) this.#text(step.name, [...path, 'name'], "the step's name");
    if (step.if !== undefined) this.#value(step.if, flag, [...path, 'if'], names.values);
    if (step.repeat !== undefined) this.#value(step.repeat, number, [...path, 'repeat'], names.values);
    let inner = names;
    if (step.index !== undefined && step.repeat === undefined) {
      this.#fault([...path, 'index'], 'index names the count of a repeat, and this step has none', true);
    } else if (step.repeat !== undefined) {
      const index = step.index ?? 'index';
      const taken = names.values.filter((name) => name !== 'index');
      this.#newName(index, [...path, 'index'], 'the name', taken, false);
      inner = { ...names, values: [...names.values, String(index)] };
    }
    this.#measure(step.measure, [...path, 'measure'], depth);
    this.#expect(step.expect, [...path, 'expect'], names.values);

    if (step.steps !== undefined) {
      for (const key of ['as', 'returns', 'refused']) {
        if (step[key] !== undefined)
          this.#fault([...path, key], `${key} belongs to a method, not to a list of steps`, true);
      }
      this.#steplist(step.steps, [...path, 'steps'], inner, depth + 1);
    } else this.#call(step, methods[0], path, inner);
  }

  #measure(value: unknown, path: ScenarioPath, depth: number): void {
    if (value === undefined || value === false) return;
    if (value !== true) this.#fault(path, `measure: must be true or false, not ${describe(value)}`);
    else if (depth > 0) this.#fault(path, 'measure belongs to a step of the outer list, not to one inside a group');
    else if (++this.#measured > 1) this.#fault(path, 'another step is measured already');
  }

  #call(step: Mapping, name: string, path: ScenarioPath, names: Names): void {
    const method = methodNamed(name)!;
    // A method without fields may be written with nothing after its colon.
    this.#fields(step[name] ?? {}, method.fields, [...path, name], name, names);
    if (step.as !== undefined) {
      if (method.names === undefined) this.#fault([...path, 'as'], `${name} returns nothing that takes a name`, true);
      else {
        const list = method.names === 'fault' ? names.faults : names.guestMemfds;
        const taken = [...names.values, ...names.guestMemfds, ...names.faults].filter((known) => !list.includes(known));
        if (this.#newName(step.as, [...path, 'as'], 'the name', taken, false)) list.push(step.as as string);
      }
    } else if (method.names === 'fault') this.#fault(path, `${name} needs 'as', the name finishFault takes`);
    if (step.returns !== undefined) {
      if (method.returns === undefined) this.#fault([...path, 'returns'], `${name} returns nothing`, true);
      else this.#value(step.returns, method.returns, [...path, 'returns'], names.values);
    }
    if (step.refused !== undefined && (typeof step.refused !== 'string' || !/^E[A-Z0-9]+$/.test(step.refused))) {
      this.#fault([...path, 'refused'], `refused: must be an errno such as EINVAL, not ${describe(step.refused)}`);
    }
  }

  #compare(value: unknown, parameters: readonly string[], names: Names): void {
    if (value === undefined) return;
    const variants = this.#list(value, ['compare'], 'compare', LIMITS.variants);
    if (Array.isArray(value) && value.length === 0) this.#fault(['compare'], 'compare is empty');
    const taken: unknown[] = [];
    for (const [index, entry] of variants.entries()) {
      const path = ['compare', index];
      const variant = this.#mapping(entry, path, 'a variant', ['name', 'vm', 'set', 'check', 'expect']);
      if (variant === undefined) continue;
      if (variant.name === undefined) this.#fault(path, "a variant needs the field 'name'");
      else this.#text(variant.name, [...path, 'name'], "the variant's name");
      if (taken.includes(variant.name))
        this.#fault([...path, 'name'], `two variants are named ${describe(variant.name)}`);
      taken.push(variant.name);
      if (variant.vm !== undefined) this.vm(variant.vm, [...path, 'vm'], names.values);
      if (variant.set !== undefined) this.#set(variant.set, [...path, 'set'], parameters);
      this.#checkWord(variant.check, [...path, 'check']);
      this.#expect(variant.expect, [...path, 'expect'], names.values);
    }
  }

  #set(value: unknown, path: ScenarioPath, parameters: readonly string[]): void {
    const set = this.#mapping(value, path, 'set');
    for (const name of Object.keys(set ?? {})) {
      if (parameters.includes(name)) continue;
      const known = parameters.length > 0 ? parameters.join(', ') : 'none';
      this.#fault([...path, name], `no parameter is named ${describe(name)} (known: ${known})`, true);
    }
  }
}
