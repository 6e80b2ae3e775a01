/**
 * Asks every classifier about one conversation over Connect, with the code that docs/clients.md generates:
 *
 *   node out/fan_out.js
 *   API_KEY=… node out/fan_out.js https://fantail.example:443 ca.pem
 */
import { readFileSync } from 'node:fs';

import { Code, ConnectError, createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';

import { ClassificationService, Role } from './gen/ts/fantail/v1/classification_service_pb.js';
import { ErrorInfoSchema } from './gen/ts/google/rpc/error_details_pb.js';

const [baseUrl = 'http://127.0.0.1:50051', ca] = process.argv.slice(2);
const transport = createGrpcTransport({ baseUrl, nodeOptions: ca ? { ca: readFileSync(ca) } : {} });
const client = createClient(ClassificationService, transport);
const key = process.env.API_KEY;
const headers: HeadersInit = key ? { authorization: `Bearer ${key}` } : {};

const conversation = { turns: [{ role: Role.CUSTOMER, text: 'where is my refund??' }] };
try {
  const { results } = await client.fanOut({ conversation }, { headers, timeoutMs: 5000 });
  for (const { classifier, outcome } of results) {
    console.log(classifier, outcome.case === 'classification' ? outcome.value.label : outcome.value?.message);
  }
} catch (error) {
  const failure = ConnectError.from(error);
  const [info] = failure.findDetails(ErrorInfoSchema);
  console.error(Code[failure.code], info?.reason);
  process.exitCode = 1;
}
