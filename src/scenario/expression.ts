// The quantities of a scenario: sizes such as 1GiB and short sums over names, such as `convertSize * (1 - privateShare)`.
//
// A text is parsed once into a tree and evaluated as often as a step repeats. Integers are exact at any size a u64 can
// take: what a double can't hold becomes a bigint, and comes back as a number when it fits again.
// Left out on purpose: assignment, member access, user functions. Nothing here can reach outside the scope it is given.

/** What an expression can be: a quantity, a word such as '2M', or a yes or no. */
export type Value = number | bigint | string | boolean;

/** Names and functions an expression may use. */
export interface Scope {
  value(name: string): Value | undefined;
  /** Every name that value() knows, for messages. */
  names(): string[];
  /** Guest address to host address, by the scenario's own memory section. */
  hva?(gpa: number | bigint): number | bigint;
}

export type Expression =
  | { kind: 'constant'; value: Value }
  | { kind: 'name'; name: string; at: number }
  | { kind: 'unary'; operator: string; operand: Expression; at: number }
  | { kind: 'binary'; operator: string; left: Expression; right: Expression; at: number }
  | { kind: 'choice'; condition: Expression; yes: Expression; no: Expression; at: number }
  | { kind: 'call'; name: string; operands: Expression[]; at: number };

/** The text is no expression, or it can't be evaluated. `at` is the offset in the text. */
export class ExpressionError extends Error {
  readonly at: number;
  constructor(message: string, at: number) {
    super(message);
    this.name = 'ExpressionError';
    this.at = at;
  }
}

const UNITS: Record<string, number> = {
  B: 1,
  K: 2 ** 10,
  KiB: 2 ** 10,
  M: 2 ** 20,
  MiB: 2 ** 20,
  G: 2 ** 30,
  GiB: 2 ** 30,
  T: 2 ** 40,
  TiB: 2 ** 40,
  P: 2 ** 50,
  PiB: 2 ** 50,
};

/** Numbers that the API takes as raw bits, by their kernel names. */
export const CONSTANTS: Readonly<Record<string, number>> = {
  PRIVATE: 8, // memory attributes
  LOG_DIRTY_PAGES: 1, // memslot flags
  READONLY: 2,
  GUEST_MEMFD: 4,
  KEEP_SIZE: 1, // fallocate modes
  PUNCH_HOLE: 2,
  MANUAL_DIRTY_LOG_PROTECT2: 168, // capabilities
  DISABLE_QUIRKS2: 213,
  EXIT_HYPERCALL: 201,
  MAP_GPA_RANGE: 4096, // its argument: a bit for KVM_HC_MAP_GPA_RANGE
};

/** Operands each function takes; min and max take any number of them. */
const FUNCTIONS: Readonly<Record<string, number>> = {
  min: -1,
  max: -1,
  floor: 1,
  ceil: 1,
  round: 1,
  alignDown: 2,
  alignUp: 2,
  pages: 1,
  hva: 1,
};

export const FUNCTION_NAMES = Object.keys(FUNCTIONS);

const TEXT_MAX = 1000;
const DEPTH_MAX = 64;
/** Beyond any u64 and any product of two sizes; it keeps a runaway product from filling memory. */
const MAGNITUDE_MAX = 2n ** 128n;

const BINDING: Record<string, number> = {
  '||': 1,
  '&&': 2,
  '==': 3,
  '!=': 3,
  '<': 4,
  '<=': 4,
  '>': 4,
  '>=': 4,
  '|': 5,
  '+': 6,
  '-': 6,
  '*': 7,
  '/': 7,
  '%': 7,
};

interface Token {
  kind: 'number' | 'text' | 'name' | 'sign' | 'end';
  text: string;
  value?: Value;
  at: number;
}

/**
 * The tree of `text`.
 * @throws {ExpressionError} if the text is no expression, or longer or deeper than the limits.
 */
export function parseExpression(text: string): Expression {
  if (text.length > TEXT_MAX) {
    throw new ExpressionError(`the expression has ${text.length} characters, the limit is ${TEXT_MAX}`, 0);
  }
  const tokens = tokenize(text);
  let next = 0;
  let depth = 0;

  const unexpected = (token: Token): ExpressionError =>
    new ExpressionError(
      token.kind === 'end' ? `'${text}' ends too early` : `unexpected '${token.text}' in '${text}'`,
      token.at,
    );
  const isSign = (sign: string): boolean => tokens[next].kind === 'sign' && tokens[next].text === sign;
  const expectSign = (sign: string): void => {
    if (!isSign(sign)) throw unexpected(tokens[next]);
    next++;
  };

  function choice(): Expression {
    if (++depth > DEPTH_MAX) {
      throw new ExpressionError(`the expression nests deeper than ${DEPTH_MAX}`, tokens[next].at);
    }
    const condition = binary(1);
    let tree = condition;
    if (isSign('?')) {
      const at = tokens[next++].at;
      const yes = choice();
      expectSign(':');
      tree = { kind: 'choice', condition, yes, no: choice(), at };
    }
    depth--;
    return tree;
  }

  function binary(weakest: number): Expression {
    let left = unary();
    for (;;) {
      const { kind, text: operator, at } = tokens[next];
      const binding = kind === 'sign' ? BINDING[operator] : undefined;
      if (binding === undefined || binding < weakest) return left;
      next++;
      left = { kind: 'binary', operator, left, right: binary(binding + 1), at };
    }
  }

  function unary(): Expression {
    const { kind, text: operator, at } = tokens[next];
    if (kind !== 'sign' || (operator !== '-' && operator !== '!')) return primary();
    if (++depth > DEPTH_MAX) throw new ExpressionError(`the expression nests deeper than ${DEPTH_MAX}`, at);
    next++;
    const operand = unary();
    depth--;
    return { kind: 'unary', operator, operand, at };
  }

  function primary(): Expression {
    const token = tokens[next++];
    if (token.kind === 'number' || token.kind === 'text') return { kind: 'constant', value: token.value as Value };
    if (token.kind === 'name') {
      if (!isSign('(')) return { kind: 'name', name: token.text, at: token.at };
      return call(token);
    }
    if (token.kind === 'sign' && token.text === '(') {
      const inner = choice();
      expectSign(')');
      return inner;
    }
    throw unexpected(token);
  }

  function call({ text: name, at }: Token): Expression {
    next++;
    const operands: Expression[] = [];
    if (!isSign(')')) {
      operands.push(choice());
      while (isSign(',')) {
        next++;
        operands.push(choice());
      }
    }
    expectSign(')');
    const count = Object.hasOwn(FUNCTIONS, name) ? FUNCTIONS[name] : undefined;
    if (count === undefined) {
      throw new ExpressionError(`unknown function '${name}' (known: ${FUNCTION_NAMES.join(', ')})`, at);
    }
    if (count >= 0 ? operands.length !== count : operands.length === 0) {
      throw new ExpressionError(
        `${name}() takes ${count < 0 ? 'at least 1' : count} values, not ${operands.length}`,
        at,
      );
    }
    return { kind: 'call', name, operands, at };
  }

  const tree = choice();
  if (tokens[next].kind !== 'end') throw unexpected(tokens[next]);
  return tree;
}

const TOKEN =
  /\s*(?:(?<number>0[xX][0-9a-fA-F]+|\d[\d_]*(?:\.\d+)?)(?<unit>[A-Za-z]*)|(?<name>[A-Za-z_][\w.]*)|'(?<text>[^']*)'|"(?<quoted>[^"]*)"|(?<sign>\|\||&&|[=!<>]=|[<>|+\-*/%()?:,!]))/y;

function tokenize(text: string): Token[] {
  const tokens: Token[] = [];
  TOKEN.lastIndex = 0;
  let at = 0;
  while (at < text.length) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) {
      if (text.slice(at).trim() === '') break;
      const bad = at + text.slice(at).search(/\S/);
      throw new ExpressionError(`unexpected '${text[bad]}' in '${text}'`, bad);
    }
    const { number, unit, name, text: single, quoted, sign } = match.groups as Record<string, string | undefined>;
    const start = at + match[0].search(/\S/);
    if (number !== undefined) {
      tokens.push({ kind: 'number', text: match[0].trim(), value: literal(number, unit as string, start), at: start });
    } else if (name !== undefined) tokens.push({ kind: 'name', text: name, at: start });
    else if (sign !== undefined) tokens.push({ kind: 'sign', text: sign, at: start });
    else tokens.push({ kind: 'text', text: match[0].trim(), value: single ?? quoted ?? '', at: start });
    at = TOKEN.lastIndex;
  }
  tokens.push({ kind: 'end', text: '', at: text.length });
  return tokens;
}

function literal(digits: string, unit: string, at: number): Value {
  if (/^0x/i.test(digits)) {
    if (unit !== '') throw new ExpressionError(`'${digits}${unit}' is no number`, at);
    return exact(BigInt(digits), at);
  }
  const factor = unit === '' ? 1 : Object.hasOwn(UNITS, unit) ? UNITS[unit] : undefined;
  if (factor === undefined) {
    throw new ExpressionError(
      `unknown unit '${unit}' in '${digits}${unit}' (known: ${Object.keys(UNITS).join(', ')})`,
      at,
    );
  }
  const plain = digits.replaceAll('_', '');
  if (plain.includes('.')) return arithmetic('*', Number(plain), factor, at);
  return exact(BigInt(plain) * BigInt(factor), at);
}

/** An integer as a number where a double holds it exactly, else as a bigint. */
function exact(value: bigint, at: number): number | bigint {
  if (value >= MAGNITUDE_MAX || value <= -MAGNITUDE_MAX) throw new ExpressionError('the number is too large', at);
  const asNumber = Number(value);
  return Number.isSafeInteger(asNumber) ? asNumber : value;
}

/**
 * The value of `tree` in `scope`.
 * @throws {ExpressionError} for an unknown name, a word where a number is needed, a division by zero.
 */
export function evaluate(tree: Expression, scope: Scope): Value {
  switch (tree.kind) {
    case 'constant':
      return tree.value;
    case 'name': {
      const value = nameValue(tree.name, scope);
      if (value === undefined) throw unknownName(tree.name, scope, tree.at);
      return value;
    }
    case 'unary': {
      const operand = evaluate(tree.operand, scope);
      if (tree.operator === '!') return !boolean(operand, '!', tree.at);
      return arithmetic('-', 0, quantity(operand, 'a minus', tree.at), tree.at);
    }
    case 'binary':
      return evaluateBinary(tree, scope);
    case 'choice':
      return evaluate(boolean(evaluate(tree.condition, scope), '?', tree.at) ? tree.yes : tree.no, scope);
    case 'call': {
      const operands = tree.operands.map((operand) => quantity(evaluate(operand, scope), `${tree.name}()`, tree.at));
      return callFunction(tree.name, operands, scope, tree.at);
    }
  }
}

function nameValue(name: string, scope: Scope): Value | undefined {
  if (name === 'true') return true;
  if (name === 'false') return false;
  return scope.value(name) ?? (Object.hasOwn(CONSTANTS, name) ? CONSTANTS[name] : undefined);
}

function unknownName(name: string, scope: Scope, at: number): ExpressionError {
  const known = scope.names();
  return new ExpressionError(`unknown name '${name}' (known: ${known.length > 0 ? known.join(', ') : 'none'})`, at);
}

function evaluateBinary(tree: Extract<Expression, { kind: 'binary' }>, scope: Scope): Value {
  const { operator, at } = tree;
  const left = evaluate(tree.left, scope);
  if (operator === '&&') return boolean(left, '&&', at) && boolean(evaluate(tree.right, scope), '&&', at);
  if (operator === '||') return boolean(left, '||', at) || boolean(evaluate(tree.right, scope), '||', at);
  const right = evaluate(tree.right, scope);
  if (operator === '==' || operator === '!=') {
    const bothNumbers = isQuantity(left) && isQuantity(right);
    if (!bothNumbers && typeof left !== typeof right) {
      throw new ExpressionError(`'${operator}' can't compare ${describe(left)} with ${describe(right)}`, at);
    }
    // biome-ignore lint/suspicious/noDoubleEquals: 1 and 1n are one quantity.
    return (left == right) === (operator === '==');
  }
  const a = quantity(left, `'${operator}'`, at);
  const b = quantity(right, `'${operator}'`, at);
  switch (operator) {
    case '<':
      return a < b;
    case '<=':
      return a <= b;
    case '>':
      return a > b;
    case '>=':
      return a >= b;
    default:
      return arithmetic(operator, a, b, at);
  }
}

function arithmetic(operator: string, a: number | bigint, b: number | bigint, at: number): number | bigint {
  if ((operator === '/' || operator === '%') && Number(b) === 0) throw new ExpressionError('division by zero', at);
  if (isInteger(a) && isInteger(b)) {
    const left = BigInt(a);
    const right = BigInt(b);
    if (operator === '+') return exact(left + right, at);
    if (operator === '-') return exact(left - right, at);
    if (operator === '*') return exact(left * right, at);
    if (operator === '%') return exact(left % right, at);
    if (operator === '|') {
      if (left < 0n || right < 0n) throw new ExpressionError("'|' needs numbers that are not negative", at);
      return exact(left | right, at);
    }
    if (left % right === 0n) return exact(left / right, at);
  }
  if (operator === '|') throw new ExpressionError("'|' needs whole numbers", at);
  const left = Number(a);
  const right = Number(b);
  const result =
    operator === '+'
      ? left + right
      : operator === '-'
        ? left - right
        : operator === '*'
          ? left * right
          : operator === '/'
            ? left / right
            : left % right;
  if (!Number.isFinite(result)) throw new ExpressionError('the number is too large', at);
  return result;
}

function callFunction(name: string, operands: (number | bigint)[], scope: Scope, at: number): number | bigint {
  const [first, second] = operands;
  switch (name) {
    case 'min':
      return ascending(operands)[0];
    case 'max':
      return ascending(operands).at(-1)!;
    case 'floor':
      return isInteger(first) ? first : Math.floor(first as number);
    case 'ceil':
      return isInteger(first) ? first : Math.ceil(first as number);
    case 'round':
      return isInteger(first) ? first : Math.round(first as number);
    case 'pages':
      return arithmetic('/', first, 4096, at);
    case 'alignDown':
    case 'alignUp': {
      if (!isInteger(second) || second <= 0)
        throw new ExpressionError(`${name}() needs a positive whole number to align to`, at);
      const step = BigInt(second);
      const value = BigInt(
        isInteger(first) ? first : name === 'alignUp' ? Math.ceil(first as number) : Math.floor(first as number),
      );
      const rest = ((value % step) + step) % step;
      return exact(value - rest + (name === 'alignUp' && rest !== 0n ? step : 0n), at);
    }
    default: {
      if (scope.hva === undefined) throw new ExpressionError('hva() is not available here', at);
      return scope.hva(first);
    }
  }
}

function ascending(values: (number | bigint)[]): (number | bigint)[] {
  return [...values].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
}

/** Every name `tree` uses, functions apart, with its offset. */
export function namesIn(tree: Expression): { name: string; at: number }[] {
  switch (tree.kind) {
    case 'constant':
      return [];
    case 'name':
      return tree.name === 'true' || tree.name === 'false' || Object.hasOwn(CONSTANTS, tree.name) ? [] : [tree];
    case 'unary':
      return namesIn(tree.operand);
    case 'binary':
      return [...namesIn(tree.left), ...namesIn(tree.right)];
    case 'choice':
      return [...namesIn(tree.condition), ...namesIn(tree.yes), ...namesIn(tree.no)];
    case 'call':
      return tree.operands.flatMap(namesIn);
  }
}

export function isQuantity(value: unknown): value is number | bigint {
  return typeof value === 'number' || typeof value === 'bigint';
}

export function isInteger(value: number | bigint): boolean {
  return typeof value === 'bigint' || Number.isInteger(value);
}

/** A value as a person reads it in a message. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return `'${value.length > 80 ? `${value.slice(0, 77)}...` : value}'`;
  if (value === null) return 'nothing';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a mapping';
  return String(value);
}

function quantity(value: Value, where: string, at: number): number | bigint {
  if (isQuantity(value)) return value;
  throw new ExpressionError(`${where} needs a number, not ${describe(value)}`, at);
}

function boolean(value: Value, where: string, at: number): boolean {
  if (typeof value === 'boolean') return value;
  throw new ExpressionError(`'${where}' needs true or false, not ${describe(value)}`, at);
}
