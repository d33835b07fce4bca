const SHARED = {
  en: {
    unreachable: "The server cannot be reached.", busy: "The server is busy. Try again in a moment.", "needs-key": "A key is needed.",
    "wrong-key": "That key is not the server's. Enter another.", key: "Key", enter: "Enter", "page-chat": "Chat", "page-read": "Read",
    "page-title": "Title", "page-classify": "Classify", "page-tag": "Tag", sure: "confidence",
  },
  zh: {
    unreachable: "连不上服务器。", busy: "服务器正忙，请稍后再试。", "needs-key": "需要密钥。", "wrong-key": "密钥不对，请重新输入。", key: "密钥",
    enter: "确定", "page-chat": "聊天", "page-read": "阅读", "page-title": "标题", "page-classify": "分类", "page-tag": "标注", sure: "置信度",
  },
};
