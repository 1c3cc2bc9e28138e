'use strict';
// A prebuilt addon if one loads here, else a build.
if (process.env.npm_config_build_from_source !== 'true') {
  try {
    require('node-gyp-build')(require('node:path').join(__dirname, '..'));
    process.exit(0);
  } catch (e) {
    console.error(`chatglm: no usable prebuilt addon (${String(e.message).split('\n')[0]}); building it`);
  }
}
require('./node-gyp.cjs');
