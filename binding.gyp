{
  "targets": [
    {
      "target_name": "chatglm",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/chatglm.node"],
          "action": ["node", "scripts/node-gyp.cjs", "--arch=<(target_arch)", "--config=<(CONFIGURATION_NAME)"]
        }
      ]
    }
  ]
}
