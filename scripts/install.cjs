'use strict';
// A prebuilt addon if one loads here, else a build.
// In a clone npm runs this twice: the server depends on this package, which npm links into its own node_modules.
if (process.env.npm_package_resolved === 'null') process.exit(0);
if (process.env.npm_config_build_from_source !== 'true') {
  try {
    require('node-gyp-build')(require('node:path').join(__dirname, '..'));
    process.exit(0);
  } catch (e) {
    console.error(`chatglm: no usable prebuilt addon (${String(e.message).split('\n')[0]}); building it`);
  }
}
require('./node-gyp.cjs');
