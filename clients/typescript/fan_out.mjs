// @ts-check
/**
 * Asks a Fantail server about one conversation and prints the answers as JSON; README.md says how to call it.
 *
 * An API key comes from API_KEY, since command lines are seen by everybody on the machine. A call that fails prints
 * what the server said of it to standard error and exits with 1.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import googleProtoFiles from 'google-proto-files';

/**
 * @typedef {{ role: 'ROLE_CUSTOMER' | 'ROLE_AGENT' | 'ROLE_SYSTEM', text: string }} Turn
 * @typedef {{ label: string, probability: number, rawProbability: number }} LabelScore
 * @typedef {{ classifier: string, label: string, confidence: number, scores: LabelScore[], abstained?: boolean }}
 *   Classification The fields that most callers read; the proto explains all of them.
 * @typedef {{ classifier: string, classification?: Classification, status?: Status }} FanOutResult
 *   One of the two is there: the answer, or why there is none.
 * @typedef {{ results: FanOutResult[] }} FanOutResponse
 * @typedef {{ code: number, message: string, details: Detail[] }} Status
 * @typedef {{ '@type': string, [field: string]: any }} Detail A message of google/rpc/error_details.proto.
 * @typedef {{ code: string, message: string, reason: string, requestId: string, violations: Record<string, string>,
 *   retryAfterSeconds: number | null }} Failure `reason`: a name of ErrorReason, empty when the server did not answer;
 *   `requestId`: what to quote to the operator; `violations`: field to what is wrong with it; `retryAfterSeconds`: how
 *   long to wait before another attempt, null where the server names no time.
 */

const USAGE =
  'node fan_out.mjs [--address HOST:PORT] [--timeout SECONDS] [--classifier NAME]… [--ca CA.pem] conversation.json';

const ROOT = path.dirname(fileURLToPath(import.meta.url));
const PROTO = path.join(ROOT, '..', '..', 'proto');
const GOOGLE = googleProtoFiles.getProtoPath('..');

/** The contract and the details of its errors. `json`: details are decoded, whatever kind they are of. */
const definition = protoLoader.loadSync(
  ['fantail/v1/classification_service.proto', 'google/rpc/error_details.proto'],
  { includeDirs: [PROTO, GOOGLE], longs: String, enums: String, json: true },
);
const { ClassificationService } = /** @type {any} */ (grpc.loadPackageDefinition(definition)).fantail.v1;
const RpcStatus = /** @type {import('@grpc/proto-loader').MessageTypeDefinition<object, Status>} */ (
  definition['google.rpc.Status']
);

/** @type {Record<string, Turn['role']>} */
const ROLES = { customer: 'ROLE_CUSTOMER', agent: 'ROLE_AGENT', system: 'ROLE_SYSTEM' };

/**
 * Asks the named classifiers, or all; rejects with grpc's ServiceError.
 *
 * @param {any} client
 * @param {Turn[]} turns
 * @param {{ classifiers: string[], timeoutSeconds: number, key?: string }} options
 * @returns {Promise<FanOutResponse>}
 */
function fanOut(client, turns, { classifiers, timeoutSeconds, key }) {
  const metadata = new grpc.Metadata();
  if (key) metadata.set('authorization', `Bearer ${key}`);
  const deadline = new Date(Date.now() + 1000 * timeoutSeconds);
  return new Promise((resolve, reject) => {
    client.FanOut(
      { conversation: { turns }, classifiers },
      metadata,
      { deadline },
      (/** @type {grpc.ServiceError | null} */ error, /** @type {FanOutResponse} */ response) =>
        error ? reject(error) : resolve(response),
    );
  });
}

/**
 * What the server said of a call that failed.
 *
 * @param {grpc.ServiceError} error
 * @returns {Failure}
 */
function failure(error) {
  const [raw] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const details = raw instanceof Buffer ? (RpcStatus.deserialize(raw).details ?? []) : [];
  const detail = (/** @type {string} */ kind) => details.find((each) => each['@type'].endsWith(`/google.rpc.${kind}`));
  const delay = detail('RetryInfo')?.retryDelay;
  return {
    code: grpc.status[error.code],
    message: error.details,
    reason: detail('ErrorInfo')?.reason ?? '',
    requestId: detail('RequestInfo')?.requestId ?? '',
    violations: Object.fromEntries(
      (detail('BadRequest')?.fieldViolations ?? []).map((/** @type {any} */ each) => [each.field, each.description]),
    ),
    retryAfterSeconds: delay ? Number(delay.seconds ?? 0) + (delay.nanos ?? 0) / 1e9 : null,
  };
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      address: { type: 'string', default: '127.0.0.1:50051' },
      timeout: { type: 'string', default: '5' },
      classifier: { type: 'string', multiple: true, default: [] },
      ca: { type: 'string' },
    },
  });
  if (positionals.length !== 1 || !(Number(values.timeout) > 0)) {
    console.error(`usage: ${USAGE}`);
    process.exitCode = 2;
    return;
  }
  const { turns } = JSON.parse(readFileSync(positionals[0], 'utf8'));
  const credentials = values.ca
    ? grpc.credentials.createSsl(readFileSync(values.ca))
    : grpc.credentials.createInsecure();
  const client = new ClassificationService(values.address, credentials);
  try {
    const response = await fanOut(
      client,
      turns.map((/** @type {any} */ turn) => ({ role: ROLES[turn.role], text: turn.text })),
      { classifiers: values.classifier, timeoutSeconds: Number(values.timeout), key: process.env.API_KEY },
    );
    console.log(JSON.stringify(response, null, 2));
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && 'details' in error)) throw error;
    console.error(JSON.stringify(failure(/** @type {grpc.ServiceError} */ (error)), null, 2));
    process.exitCode = 1;
  } finally {
    client.close();
  }
}

await main();
