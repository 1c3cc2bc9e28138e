#!/usr/bin/env node
import { buildApp } from '../server.js';

const app = buildApp({ models: [{ path: process.argv[2] }] });
app.listen({ port: 8000, host: '127.0.0.1' }).then((address) => console.log(`Listening on ${address}`));
