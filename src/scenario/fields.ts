// The fields of a scenario: what kind of value each takes, and how a written value becomes it.
//
// A field is written as a number, as yes or no, as one of its words, or as an expression that gives one of these.

import {
  describe,
  type Expression,
  ExpressionError,
  evaluate,
  isInteger,
  isQuantity,
  namesIn,
  parseExpression,
  type Scope,
  type Value,
} from './expression.ts';
import { didYouMean } from './nearest.ts';

/** What a field takes. */
export interface Field {
  kind: 'u64' | 'number' | 'any' | 'flag' | 'word' | 'text' | 'guestMemfd' | 'fault' | 'list' | 'record';
  /** kind word: the words. */
  words?: readonly string[];
  /** kind record: its fields. */
  fields?: Record<string, Field>;
  optional?: boolean;
}

export const u64: Field = { kind: 'u64' };
export const number: Field = { kind: 'number' };
export const flag: Field = { kind: 'flag' };
export const word = (...words: string[]): Field => ({ kind: 'word', words });
export const optional = (field: Field): Field => ({ ...field, optional: true });

const U64_MAX = 2n ** 64n - 1n;

/** Parsed expressions by their text: a step that repeats parses once. */
export class Expressions {
  readonly #trees = new Map<string, Expression>();

  parse(text: string): Expression {
    let tree = this.#trees.get(text);
    if (tree === undefined) {
      tree = parseExpression(text);
      this.#trees.set(text, tree);
    }
    return tree;
  }
}

/**
 * The value that `written` stands for.
 * @throws {ExpressionError} with a message for people.
 */
export function fieldValue(written: unknown, field: Field, scope: Scope, expressions: Expressions): Value {
  if (field.kind === 'word' && typeof written === 'string') {
    if (field.words!.includes(written)) return written;
    if (isMisspelt(written, (name) => scope.value(name) !== undefined)) throw notOneOf(written, field.words!);
  }
  return fieldKind(plainValue(written, scope, expressions), field);
}

/** A number, a yes or no, or the value of an expression. */
export function plainValue(written: unknown, scope: Scope, expressions: Expressions): Value {
  if (typeof written === 'string') return evaluate(expressions.parse(written), scope);
  if (typeof written === 'boolean' || typeof written === 'bigint') return written;
  if (typeof written === 'number' && Number.isFinite(written)) return written;
  throw new ExpressionError(`needs a number or an expression, not ${describe(written)}`, 0);
}

function fieldKind(value: Value, field: Field): Value {
  switch (field.kind) {
    case 'u64':
      if (!isQuantity(value) || !isInteger(value) || value < 0 || BigInt(value) > U64_MAX) {
        throw new ExpressionError(`needs a whole number from 0 to 2^64-1, not ${describe(value)}`, 0);
      }
      return value;
    case 'number':
      if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
        throw new ExpressionError(`needs a whole number from 0 to 2^53-1, not ${describe(value)}`, 0);
      }
      return value;
    case 'flag':
      if (typeof value !== 'boolean') throw new ExpressionError(`needs true or false, not ${describe(value)}`, 0);
      return value;
    case 'word':
      if (typeof value !== 'string' || !field.words!.includes(value)) throw notOneOf(String(value), field.words!);
      return value;
    default:
      return value;
  }
}

/** A single word that is no name either is one of the words misspelt, and no expression with a name missing. */
function isMisspelt(written: string, isName: (name: string) => boolean): boolean {
  return !/[\s'"()?]/.test(written) && !isName(written);
}

function notOneOf(value: string, words: readonly string[]): ExpressionError {
  return new ExpressionError(`${describe(value)} is none of ${words.join(', ')}${didYouMean(value, words)}`, 0);
}

/**
 * What is wrong with `written` before any name has a value: undefined if nothing is.
 * Without names the value is judged at once.
 */
export function fieldFault(written: unknown, field: Field, known: readonly string[], hva = true): string | undefined {
  const scope: Scope = {
    value: (name) => (known.includes(name) ? 0 : undefined),
    names: () => [...known],
    ...(hva && { hva: (gpa: number | bigint) => gpa }),
  };
  const expressions = new Expressions();
  try {
    if (typeof written === 'string' && !(field.kind === 'word' && field.words!.includes(written))) {
      if (field.kind === 'word' && isMisspelt(written, (name) => known.includes(name))) {
        throw notOneOf(written, field.words!);
      }
      const names = namesIn(expressions.parse(written));
      const unknown = names.find(({ name }) => !known.includes(name));
      if (unknown !== undefined) {
        const list = known.length > 0 ? known.join(', ') : 'none';
        return `unknown name '${unknown.name}'${didYouMean(unknown.name, known)} (known: ${list})`;
      }
      if (names.length > 0) return undefined;
    }
    fieldValue(written, field, scope, expressions);
    return undefined;
  } catch (error) {
    if (error instanceof ExpressionError) return error.message;
    throw error;
  }
}
