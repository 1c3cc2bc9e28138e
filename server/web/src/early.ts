// Sets theme and language before the page is painted, so that nothing flashes.
(() => {
  try {
    const saved = JSON.parse(localStorage.getItem('chatglm.settings') ?? '{}');
    if (saved.theme === 'light' || saved.theme === 'dark') document.documentElement.dataset.theme = saved.theme;
    const language = saved.language === 'zh' || saved.language === 'en' ? saved.language : undefined;
    const isChinese = language ? language === 'zh' : /^zh\b/i.test(navigator.language);
    document.documentElement.lang = isChinese ? 'zh-CN' : 'en';
  } catch {
    // Without a store, or with a damaged one, the page is as the browser has it.
  }
})();
