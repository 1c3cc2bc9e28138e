declare module '*.css';
/** The name of KaTeX's style sheet among the assets: set by the bundler. */
declare const MATH_STYLE: string;
