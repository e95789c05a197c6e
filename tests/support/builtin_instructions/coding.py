"""Small programming tasks. Fields are split by ' | ' and lines by ' / ', so no code here uses either."""

PYTHON = """
Write a Python expression that gives the sum of the squares of the numbers from 1 to 10. | sum(n ** 2 for n
  in range(1, 11)) / The generator squares each number and sum() adds them up; the result is 385.
Write a Python function that checks whether a word is a palindrome. | def is_palindrome(word): /     word =
  word.lower() /     return word == word[::-1] / The slice [::-1] reverses the word.
How do I reverse a list in Python without changing the original? | Use slicing: reversed_list =
  numbers[::-1]. It makes a new list and leaves the original as it is.
Write one line of Python that counts the vowels in a string called text. | count =
  sum(text.lower().count(vowel) for vowel in "aeiou")
How do I read a text file line by line in Python? | with open("notes.txt", encoding="utf-8") as file:
  /     for line in file: /         print(line.rstrip()) / The file is closed automatically.
Write a Python function that returns the larger of two numbers. | def larger(a, b): /     return a if a >= b
  else b
How can I remove duplicates from a Python list and keep the order? | unique = list(dict.fromkeys(items)) /
  Dictionary keys are unique and keep the order in which they were added.
Write a list comprehension with all even numbers below 20. | evens = [n for n in range(20) if n % 2 == 0]
How do I swap two variables in Python? | Write a, b = b, a. Python builds a tuple of the right side first,
  so no temporary variable is needed.
Write a Python function that converts Celsius to Fahrenheit. | def to_fahrenheit(celsius): /     return
  celsius * 1.8 + 32 / For example, to_fahrenheit(100) returns 212.0.
What does the Python expression "abc" * 3 produce? | It produces "abcabcabc", because multiplying a string
  by a number repeats it.
How do I find the most common element of a list in Python? | from collections import Counter /
  Counter(items).most_common(1)[0][0] / Counter counts every element and most_common sorts them by count.
Write a Python loop that prints the multiplication table of 7. | for i in range(1, 11): /     print(f"7 x
  {i} = {7 * i}")
How do I merge two dictionaries in Python? | merged = {**first, **second} / If a key is in both
  dictionaries, the value of the second one is kept.
What is the difference between a list and a tuple in Python? | A list can be changed after it was created,
  while a tuple cannot. Tuples can therefore serve as dictionary keys.
Write a Python function that returns the factorial of n. | def factorial(n): /     result = 1 /     for i in
  range(2, n + 1): /         result *= i /     return result
How can I sort a list of words by length in Python? | Use sorted(words, key=len). The key function is
  applied to each word, and the words are ordered by its result.
What does the Python function enumerate do? | enumerate yields pairs of an index and an element, so that a
  loop knows the position: for i, name in enumerate(names).
Write Python code that handles a division by zero. | try: /     result = a // b / except ZeroDivisionError:
  /     result = None / The program goes on instead of stopping with an error.
How do I get the last three elements of a list in Python? | Use a slice with a negative start: items[-3:].
  It also works when the list has fewer than three elements.
Explain what this Python code does: [w.upper() for w in words if len(w) > 3] | It builds a list of the words
  that have more than three letters, each written in capital letters.
Explain what this Python code does: max(prices, key=prices.get) | It returns the key of the dictionary
  "prices" whose value is the highest, that is, the most expensive item.
Explain what this Python code does: " ".join(text.split()) | It splits the text at all white space and joins
  the pieces with single blanks, so repeated blanks disappear.
Explain what this Python code does: all(n > 0 for n in numbers) | It is True if every number in "numbers" is
  greater than zero, and False as soon as one is not.
Find the bug in this Python code: for i in range(len(items) + 1): print(items[i]) | The range is one too
  long, so the last index does not exist. Use range(len(items)), or loop over the items directly.
Find the bug in this Python code: if x = 5: print("five") | A single equals sign assigns a value. A
  comparison needs two: if x == 5: print("five").
Find the bug in this Python code: def add(item, box=[]): box.append(item); return box | The default list is
  created only once and shared by all calls. Use box=None and create the list inside the function.
Find the bug in this Python code: print("Total: " + 7) | A string and a number cannot be added. Convert the
  number first: print("Total: " + str(7)).
"""

SQL = """
Write an SQL query that lists all customers from Berlin. | SELECT * FROM customers WHERE city = 'Berlin'; /
  The WHERE clause keeps only the rows with that city.
Write an SQL query that counts the orders of each customer. | SELECT customer_id, COUNT(*) AS orders FROM
  orders GROUP BY customer_id; / GROUP BY forms one group for each customer.
Write an SQL query for the five most expensive products. | SELECT name, price FROM products ORDER BY price
  DESC LIMIT 5; / DESC puts the highest price first, and LIMIT cuts the list.
Write an SQL statement that raises all salaries in the sales department by 3 percent. | UPDATE employees SET
  salary = salary * 1.03 WHERE department = 'sales'; / Multiplying by 1.03 adds three percent.
Write an SQL query that finds employees whose name begins with the letter M. | SELECT * FROM employees WHERE
  name LIKE 'M%'; / The percent sign stands for any further characters.
Write an SQL query that shows each order with the name of its customer. | SELECT orders.id, customers.name
  FROM orders JOIN customers ON customers.id = orders.customer_id;
Write an SQL statement that deletes all log entries from before 2020. | DELETE FROM logs WHERE created_at <
  '2020-01-01'; / Dates in ISO format can be compared directly.
Write an SQL query that returns the average price per category, but only for averages above 50. | SELECT
  category, AVG(price) FROM products GROUP BY category HAVING AVG(price) > 50;
Write an SQL statement that adds a book with a title and a year. | INSERT INTO books (title, year) VALUES
  ('The Quiet River', 1998); / The values come in the order of the columns.
What is the difference between WHERE and HAVING in SQL? | WHERE filters single rows before they are grouped,
  while HAVING filters whole groups after aggregation.
What does DISTINCT do in an SQL query? | DISTINCT removes duplicate rows from the result. For example,
  SELECT DISTINCT city FROM customers lists every city once.
Write an SQL query for customers who have never ordered anything. | SELECT name FROM customers WHERE id NOT
  IN (SELECT customer_id FROM orders);
What is a primary key? | A primary key is a column, or a set of columns, that identifies every row of a
  table. It must be unique and may not be empty.
Write an SQL query that finds the newest message of the table "messages". | SELECT * FROM messages ORDER BY
  sent_at DESC LIMIT 1; / Sorting by time in descending order puts the newest first.
"""

REGEX = """
^\\d{5}$ | It matches a text that consists of exactly five digits, such as a US ZIP code like 90210.
[aeiou] | It matches a single lowercase vowel. In the word "tree" it would match each letter e.
^[A-Z][a-z]+$ | It matches a word that starts with one capital letter followed by one or more lowercase
  letters, for example "London".
\\bcat\\b | It matches "cat" as a whole word. The word boundaries keep it from matching inside "category".
colou?r | It matches both "color" and "colour", because the question mark makes the letter u optional.
^\\s*$ | It matches an empty line, or a line that contains only white space.
\\d{4}-\\d{2}-\\d{2} | It matches dates such as 2024-05-17: four digits, two digits and two digits,
  separated by hyphens.
^#[0-9a-fA-F]{6}$ | It matches a color code such as #1A2B3C: a hash sign followed by six hexadecimal digits.
(ha)+ | It matches "ha" repeated one or more times, as in "ha", "haha" or "hahaha".
[^0-9] | It matches any single character that is not a digit, because the caret inside the brackets negates
  the set.
^.{8,}$ | It matches a line of at least eight characters, which is useful to check the length of a password.
\\.txt$ | It matches texts that end with ".txt". The backslash makes the dot stand for a real dot.
"""
REGEX_ASKED = (
    "Explain the regular expression {}",
    "What does this regular expression match?",
    "Describe in plain English what the pattern {} matches.",
)

SHELL = """
Which command lists all files in a folder, including hidden ones, on Linux? | Use ls -a. The option -a shows
  also the files whose names begin with a dot; add -l for details.
How do I find out in which directory I am in a Linux shell? | Type pwd, which stands for "print working
  directory". It prints the full path of the current folder.
How do I count the lines of a file in the terminal? | Use wc -l file.txt. The command wc counts words, lines
  and bytes, and -l limits it to lines.
Which command searches for the word "error" in a log file? | grep -i error app.log prints every line that
  contains the word. The option -i ignores upper and lower case.
How do I make a script executable on Linux? | Run chmod +x script.sh. It adds the permission to execute, so
  you can then start the script with its path.
How do I create a new branch and switch to it in git? | Run git switch -c new-branch. The option -c creates
  the branch before switching to it.
How do I undo changes to a file that I have not yet committed in git? | Run git restore file.txt. It
  replaces the file by the last committed version, so your changes are lost.
How do I see how much disk space is left on Linux? | Run df -h. It lists all file systems with their size,
  used space and free space in readable units.
How do I show the last ten lines of a file? | Use tail file.txt, which shows the last ten lines by default.
  With tail -f you can watch new lines arrive.
How do I copy a whole folder in the terminal? | Use cp -r source target. The option -r copies the folder
  recursively, with everything inside it.
What does git pull do? | git pull fetches new commits from the remote repository and merges them into your
  current branch.
How do I stop a program that hangs in the terminal? | Press Ctrl and C together. If that does not help, find
  its number with ps and end it with kill.
"""

TERMS = """
a variable | A variable is a name for a value that a program stores, so that it can be used and changed
  later.
recursion | Recursion means that a function calls itself on a smaller part of the problem until a simple
  case is reached.
a unit test | A unit test is a small program that checks whether one part of the code gives the expected
  result.
a database index | A database index is a sorted lookup structure that lets the database find rows without
  reading the whole table.
an API | An API is a set of rules through which one program can ask another for data or services.
version control | Version control records every change to a set of files, so you can compare versions, undo
  mistakes and work together.
a cache | A cache is a small, fast store for data that will probably be needed again, so it need not be
  computed or fetched twice.
a compiler | A compiler translates source code written by people into machine code that a computer can run.
an infinite loop | An infinite loop is a part of a program that repeats forever because its stopping
  condition never becomes true.
a hash function | A hash function turns data of any length into a number or text of fixed length, and equal
  data always gives the same result.
cloud computing | Cloud computing means using computers in a data center over the internet instead of owning
  them yourself.
a neural network | A neural network is a model made of layers of simple units whose connections are adjusted
  until it gives good answers on examples.
"""
TERMS_ASKED = (
    "Explain {} to a beginner in programming.",
    "A beginner asks what {} is. What do you answer?",
)
